"""``msocks nc``: bytes both ways, ends, and real ssh over it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.agent_lab import MSOCKS, AgentLab, RunningAgent, echo

PAYLOAD = random.Random(1).randbytes(8_000_000)


async def test_bytes_go_both_ways_at_once_and_the_end_of_input_is_passed_on(lab: AgentLab, agent: RunningAgent):
    async with lab.server(echo) as destination:
        nc = agent.command(
            "nc", str(destination.host), str(destination.port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await asyncio.to_thread(nc.communicate, PAYLOAD, 30)
    assert nc.returncode == 0, nc.output()
    assert hashlib.sha256(out).digest() == hashlib.sha256(PAYLOAD).digest()


async def test_what_the_server_says_after_the_end_of_input_arrives(lab: AgentLab, agent: RunningAgent):
    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await reader.read()
        await asyncio.sleep(0.2)
        writer.write(hashlib.sha256(received).hexdigest().encode())

    async with lab.server(digest) as destination:
        command = ["nc", str(destination.host), str(destination.port)]
        done = await asyncio.to_thread(agent.run, *command, input="question")
    assert (done.returncode, done.stdout) == (0, hashlib.sha256(b"question").hexdigest())


async def test_what_the_server_says_first_arrives_and_its_end_is_the_end_of_output(lab: AgentLab, agent: RunningAgent):
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"banner")
        writer.write_eof()
        await reader.read()

    async with lab.server(greet) as destination:
        nc = agent.command(
            "nc", str(destination.host), str(destination.port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert nc.stdout is not None
        assert nc.stdin is not None
        assert await asyncio.to_thread(nc.stdout.read) == b"banner"
        assert nc.poll() is None  # our direction has not ended
        nc.stdin.close()
        assert await asyncio.to_thread(nc.wait, 10) == 0


async def test_a_reset_is_status_1_and_a_message(lab: AgentLab, agent: RunningAgent):
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with lab.server(rude) as destination:
        nc = agent.command(
            "nc",
            str(destination.host),
            str(destination.port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert nc.stdin is not None
        assert nc.stderr is not None
        nc.stdin.write(b"!")
        nc.stdin.flush()
        assert await asyncio.to_thread(nc.wait, 10) == 1
        assert b"Connection reset" in nc.stderr.read()
        nc.end()


def test_a_refusal_is_status_1_with_the_reason_and_the_remedy(lab: AgentLab, agent: RunningAgent):
    done = agent.run("nc", lab.server_host, "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"msocks nc: {lab.server_host}:1: the destination refused the connection; "
        "check that a server listens on that port\n"
    )
    done = agent.run("nc", "nonexistent.invalid", "22")
    assert (done.returncode, "does not resolve" in done.stderr) == (1, True)
    done = agent.run("-v", "nc", lab.server_host, "1")
    assert (done.returncode, done.stderr.count("\n"), "the agent listens on" in done.stderr) == (1, 2, True)


async def test_interrupt_is_status_130_without_a_word(lab: AgentLab, agent: RunningAgent):
    async with lab.server(echo) as destination:
        nc = agent.command(
            "nc",
            str(destination.host),
            str(destination.port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        await agent.until_state(destination, "live")
        nc.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(nc.wait, 10) == 130
        assert nc.stderr is not None
        assert nc.stderr.read() == b""
        nc.end()


def test_pass_fd_needs_a_unix_socket(lab: AgentLab, agent: RunningAgent, sshd: int):
    done = agent.run("nc", "--pass-fd", lab.server_host, str(sshd))
    assert (done.returncode, "Unix socket" in done.stderr) == (2, True)


@pytest.fixture(scope="module")
def sshd(lab: AgentLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real OpenSSH server on the server host, for root with the key that lies beside its configuration."""
    directory = lab.directory / "ssh"
    directory.mkdir()
    privilege_separation = Path("/run/sshd")
    made = not privilege_separation.exists()
    privilege_separation.mkdir(exist_ok=True)
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True, timeout=30)
    config = directory / "sshd_config"
    config.write_text(
        f"Port 2222\nHostKey {directory}/host_key\nAuthorizedKeysFile {directory}/user_key.pub\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nUsePAM no\nPidFile none\n"
    )
    server = lab.lab.server.popen(["/usr/sbin/sshd", "-D", "-e", "-f", config])
    lab.lab.server.wait_listening(2222)
    yield 2222
    server.stop()
    if made:
        privilege_separation.rmdir()


@pytest.mark.parametrize("way", ["copying", "passing the descriptor"])
def test_ssh_uses_it_as_its_proxy_command(lab: AgentLab, agent: RunningAgent, sshd: int, way: str):
    directory = lab.directory / "ssh"
    python = " ".join(MSOCKS)
    options = ["-F", "none", "-i", f"{directory}/user_key", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"]
    options += ["-o", f"UserKnownHostsFile={directory}/known_hosts", "-o", "LogLevel=ERROR", "-p", str(sshd)]
    if way == "copying":
        options += ["-o", f"ProxyCommand={python} nc %h %p"]
    else:
        options += ["-o", f"ProxyCommand={python} nc --pass-fd %h %p", "-o", "ProxyUseFdpass=yes"]
    environment = {**os.environ, "MSOCKS_CONTROL": agent.control}
    text = "some words\n" * 20_000
    began = time.monotonic()
    done = lab.lab.mobile.run(
        ["ssh", *options, f"root@{lab.server_host}", "sha256sum"], env=environment, input=text, timeout=30
    )
    assert done.stdout.split()[0] == hashlib.sha256(text.encode()).hexdigest()
    assert time.monotonic() - began < 10
