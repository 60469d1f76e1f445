"""Servers on the mobile host that peers reach at the proxy's address, while the mobile host changes network."""

from __future__ import annotations

import json
import random
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import LTE, MSOCKS, SERVER_PORT, WIFI, Field
from tests.end_to_end.ends import PATIENCE_S, entered, eventually, read
from tests.end_to_end.real_servers import SSH_PORT, start_sshd

from msocks_lab import CutMode, Lab, LabConfig

HERE = Path(__file__).parent
AT = 4022
ELSEWHERE = 4099
CONFIG = f"""\
[proxy]
take_timeout_s = 20

[proxy.publish]
alice = ["{AT}", "4030-4039"]
"""
# What comes in is relayed, whatever the proxy's datapath is.
pytestmark = pytest.mark.parametrize("datapath", ["splice"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def world(datapath: str) -> Iterator[Field]:
    with Lab(LabConfig([WIFI, LTE])) as lab:
        field = Field(lab, datapath)
        (field.directory / "proxy.toml").write_text(CONFIG)
        field.start_proxy("--config", str(field.directory / "proxy.toml"))
        yield field


def call(field: Field, port: int = AT) -> socket.socket:
    """A connection of the server host to a port of the proxy."""
    with entered(field.lab, "server"):
        return socket.create_connection((field.lab.proxy.ipv4, port), timeout=PATIENCE_S)


def is_refused(field: Field, port: int) -> bool:
    """Whether nobody listens there any more; it takes the proxy a moment to hear that nobody shall."""
    try:
        call(field, port).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_program_accepts_at_the_proxy_and_its_connection_moves(world: Field) -> None:
    lab = world.lab
    program = str(HERE / "library_program.py")
    argv = [sys.executable, program, "accepting", str(world.access), str(AT), "asyncio"]
    server = lab.mobile.popen(argv, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert json.loads(server.stdout.readline()) == [lab.proxy.ipv4, AT]
    with call(world) as peer:
        block = bytes(range(256)) * 1000
        for link in ("lte", "wifi", "lte"):
            before = lab.link(link).counters()
            sender = threading.Thread(target=peer.sendall, args=(block,))
            sender.start()
            assert read(peer, len(block)) == block
            sender.join()
            crossed = lab.link(link).counters().since(before)
            assert crossed.bytes_up > len(block), link
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        name = list(peer.getsockname())
    result = json.loads(server.stdout.readline())
    assert server.wait(10) == 0
    assert result["peer"] == name
    assert result["refused"] == ["ListenError", 13, "alice may publish at the ports"]
    assert result["events"] == ["Moved", "Moved", "Moved", "Ended"]
    eventually(lambda: is_refused(world, AT))


class Publication:
    """`msocks publish` on the mobile host."""

    def __init__(self, field: Field, *arguments: str) -> None:
        argv = [MSOCKS, "publish", *arguments, "--access-file", str(field.access), "--link", "wifi", "--link", "lte"]
        self.process = field.lab.mobile.popen([*argv, "--json"], stdout=subprocess.PIPE, unprivileged=True)

    def hear(self, event: str) -> dict[str, Any]:
        """The next event of that kind."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            said: dict[str, Any] = json.loads(line)
            assert said["schema"] == 1
            if said["event"] == event:
                return said
        pytest.fail(f"it has ended\n{self.process.tail()}")

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()


def test_ssh_to_a_host_that_moves(world: Field) -> None:
    """Two sessions at once; an upload through one of them is under way when wifi goes, and when it is back."""
    lab = world.lab
    start_sshd(world, lab.mobile)
    data = random.Random(1).randbytes(3_000_000)
    (world.directory / "up").write_bytes(data)
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    ssh = ["ssh", "-i", str(world.directory / "user_key"), "-p", str(AT), *[w for o in options for w in ("-o", o)]]
    with Publication(world, str(SSH_PORT), "--at", str(AT)) as published:
        assert published.hear("published")["at"].endswith(f":{AT}")
        target = f"root@{lab.proxy.ipv4}"
        talk = lab.server.popen([*ssh, target, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert published.hear("accepted")["link"] == "wifi"
        copy = f"{shlex.join(ssh)} {target} cat < {world.directory / 'up'} > {world.directory / 'down'}"
        copying = lab.server.popen(["sh", "-c", copy])
        session = published.hear("accepted")["session"]
        world.wait_until(lambda: (world.directory / "down").stat().st_size > 500_000)
        lab.link("wifi").cut(CutMode.CARRIER)
        moved = published.hear("moved")
        assert moved["to"] == "lte"
        assert 0 < (world.directory / "down").stat().st_size < len(data)
        world.wait_until(lambda: world.carrying("lte", 0.3) > 200_000)
        shown = json.loads(lab.proxy.run([MSOCKS, "sessions", "--state", str(world.state), "--json"]).stdout)
        (carried,) = [each for each in shown["sessions"] if each["id"] == session]
        assert (carried["datapath"], carried["datapath_reason"]) == ("relay", "accepted")
        assert copying.wait(60) == 0
        assert (world.directory / "down").read_bytes() == data
        # Who comes now comes over the network that is there.
        late = lab.server.popen([*ssh, target, "echo", "late"], stdout=subprocess.PIPE)
        assert published.hear("accepted")["link"] == "lte"
        assert late.communicate(timeout=20)[0] == b"late\n"
        lab.link("wifi").restore()
        assert talk.stdin is not None
        assert talk.stdout is not None
        talk.stdin.write(b"still here\n")
        talk.stdin.close()
        assert talk.stdout.read() == b"still here\n"
        assert talk.wait(10) == 0


def test_it_is_published_again_by_a_proxy_that_was_restarted(world: Field) -> None:
    with Publication(world, str(SERVER_PORT), "--at", "4030") as published:
        published.hear("published")
        with call(world, 4030) as peer, pytest.raises(ConnectionResetError):  # nobody listens at SERVER_PORT there
            read(peer, 1)
        assert "event=service_unreachable" in published.process.tail()
        world.kill_proxy()
        world.start_proxy("--config", str(world.directory / "proxy.toml"))
        world.lab.proxy.wait_listening(4030)
        with call(world, 4030) as peer, pytest.raises(ConnectionResetError):
            read(peer, 1)
    eventually(lambda: is_refused(world, 4030))


def test_what_the_operator_does_not_allow_is_refused_with_a_remedy(world: Field) -> None:
    arguments = [MSOCKS, "publish", "22", "--access-file", str(world.access), "--at", str(ELSEWHERE)]
    done = world.lab.mobile.run(arguments, check=False)
    assert done.returncode == 1
    assert f"alice may publish at the ports {AT}, 4030-4039, not at {ELSEWHERE}" in done.stderr
    assert "use one of them, or ask the operator" in done.stderr
