"""BIND at the agent's port: an active-mode FTP client on the mobile host, and an FTP server that connects to it."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator

import pytest
from tests.agent.agent_lab import AgentLab, RunningAgent
from tests.client.mobile_lab import on_host

CONTENT = random.Random(3).randbytes(3_000_000)


class SocksStream:
    """One connection to the agent's SOCKS5 port, with blocking calls (for a thread)."""

    def __init__(self, lab: AgentLab, agent: RunningAgent, command: int, host: str, port: int) -> None:
        with on_host(lab.lab, "mobile"):
            self.sock = socket.create_connection(agent.address, timeout=15)
        self.file = self.sock.makefile("rb")
        self.sock.sendall(b"\x05\x01\x00")
        assert self.file.read(2) == b"\x05\x00"
        self.sock.sendall(bytes((5, command, 0, 1)) + socket.inet_aton(host) + port.to_bytes(2, "big"))

    def reply(self) -> tuple[int, str, int]:
        """Code, host and port of the next reply (RFC 1928 section 6)."""
        version, code, _, kind = self.file.read(4)
        assert (version, kind) == (5, 1)
        return code, socket.inet_ntoa(self.file.read(4)), int.from_bytes(self.file.read(2), "big")

    def close(self) -> None:
        self.file.close()
        self.sock.close()


async def serve_ftp(lab: AgentLab, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server's side of RFC 959: PORT, then RETR over a connection that it opens itself."""
    writer.write(b"220 ready\r\n")
    while line := await reader.readline():
        match line.split():
            case [b"PORT", where]:
                *numbers, high, low = where.decode().split(",")
                host, port = ".".join(numbers), int(high) * 256 + int(low)
                writer.write(b"200 good\r\n")
            case [b"RETR", _]:
                with on_host(lab.lab, "server"):
                    sock = socket.socket()
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
                _, data = await asyncio.open_connection(sock=sock)
                writer.write(b"150 here it comes\r\n")
                for begin in range(0, len(CONTENT), 100_000):
                    data.write(CONTENT[begin : begin + 100_000])
                    await data.drain()
                    await asyncio.sleep(0.02)
                data.close()
                await data.wait_closed()
                writer.write(b"226 done\r\n")


def download(lab: AgentLab, agent: RunningAgent, host: str, port: int) -> tuple[bytes, str]:
    """Active mode through BIND; the data connection is moved on the way. Returns the file and who has connected."""
    control = SocksStream(lab, agent, 1, host, port)
    assert control.reply()[0] == 0
    assert control.file.readline().startswith(b"220")
    data = SocksStream(lab, agent, 2, host, 0)
    code, bound_host, bound_port = data.reply()
    assert code == 0
    where = ",".join([*bound_host.split("."), *(str(each) for each in divmod(bound_port, 256))])
    control.sock.sendall(f"PORT {where}\r\nRETR file\r\n".encode())
    code, peer, peer_port = data.reply()
    assert code == 0
    got = data.file.read(500_000)
    flow = max(agent.client.flows(), key=lambda flow: float(flow["since"]))
    assert flow["destination"] == f"{peer}:{peer_port}"
    assert (flow["datapath"], flow["link"]) == ("relay", "wifi")
    before = lab.lab.link("lte").counters()
    assert agent.run("move", flow["id"], "--to", "lte").returncode == 0
    got += data.file.read()
    assert lab.lab.link("lte").counters().since(before).bytes_down > 1_000_000
    assert control.file.readline().startswith(b"200")
    assert control.file.readline().startswith(b"150")
    assert control.file.readline().startswith(b"226")
    data.close()
    control.close()
    return got, peer


@pytest.fixture
async def ftp(lab: AgentLab) -> AsyncIterator[tuple[str, int]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_ftp(lab, reader, writer)

    async with lab.server(serve) as endpoint:
        yield str(endpoint.host), endpoint.port


async def test_an_active_ftp_download_moves(lab: AgentLab, agent: RunningAgent, ftp: tuple[str, int]):
    agent.wait_authorised()
    got, peer = await asyncio.to_thread(download, lab, agent, *ftp)
    assert got == CONTENT
    assert peer == lab.server_host


async def test_a_peer_that_is_not_allowed_is_refused(lab: AgentLab, agent: RunningAgent):
    agent.wait_authorised()
    program = await asyncio.to_thread(SocksStream, lab, agent, 2, "127.0.0.1", 0)
    assert (await asyncio.to_thread(program.reply))[0] == 2
    program.close()


async def test_a_program_that_hangs_up_gives_its_port_back(lab: AgentLab, agent: RunningAgent):
    agent.wait_authorised()
    program = await asyncio.to_thread(SocksStream, lab, agent, 2, lab.server_host, 0)
    code, _, port = await asyncio.to_thread(program.reply)
    assert code == 0

    listening = lab.lab.proxy.run(["ss", "-Hltn", f"sport = :{port}"]).stdout
    assert str(port) in listening
    program.close()
    async with asyncio.timeout(5):
        while str(port) in lab.lab.proxy.run(["ss", "-Hltn", f"sport = :{port}"]).stdout:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
