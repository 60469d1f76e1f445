"""BIND at the agent's port: Python's FTP client in active mode on the mobile host, and a server that connects to it."""

from __future__ import annotations

import asyncio
import ftplib
import functools
import random
import socket
from collections.abc import AsyncIterator

import pytest
from tests.agent.agent_lab import AgentLab, RunningAgent, receive_exactly
from tests.client.mobile_lab import on_host

CONTENT = random.Random(3).randbytes(3_000_000)


class SocksStream:
    """One connection to the agent's SOCKS5 port, with blocking calls (for a thread)."""

    def __init__(self, lab: AgentLab, agent: RunningAgent, command: int, host: str, port: int) -> None:
        with on_host(lab.lab, "mobile"):
            self.sock = socket.create_connection(agent.address, timeout=15)
        self.sock.sendall(b"\x05\x01\x00")
        assert receive_exactly(self.sock, 2) == b"\x05\x00"
        self.sock.sendall(bytes((5, command, 0, 1)) + socket.inet_aton(host) + port.to_bytes(2, "big"))

    def reply(self) -> tuple[int, str, int]:
        """Code, host and port of the next reply (RFC 1928 section 6)."""
        version, code, _, kind = receive_exactly(self.sock, 4)
        assert (version, kind) == (5, 1)
        host = socket.inet_ntoa(receive_exactly(self.sock, 4))
        return code, host, int.from_bytes(receive_exactly(self.sock, 2), "big")

    def close(self) -> None:
        self.sock.close()


class Listening:
    """What an FTP client takes for its listening socket."""

    def __init__(self, stream: SocksStream) -> None:
        self._stream = stream

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        """The connection that it has become goes on."""

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        code, peer, port = self._stream.reply()
        assert code == 0
        return self._stream.sock, (peer, port)


class ActiveFtp(ftplib.FTP):
    """Python's own FTP client in active mode. Its sockets are the agent's, as SOCKS libraries put them in place."""

    def __init__(self, lab: AgentLab, agent: RunningAgent, host: str, port: int) -> None:
        super().__init__(timeout=15)
        self.set_pasv(False)
        self._open = functools.partial(SocksStream, lab, agent)
        control = self._open(1, host, port)
        assert control.reply()[0] == 0
        self.host, self.sock, self.af = host, control.sock, socket.AF_INET
        self.file = control.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()

    def makeport(self) -> Listening:  # type: ignore[override]
        stream = self._open(2, self.host, 0)
        code, host, port = stream.reply()
        assert code == 0
        self.sendport(host, port)
        return Listening(stream)


async def serve_ftp(lab: AgentLab, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server's side of RFC 959: PORT, then RETR over a connection that it opens itself."""
    writer.write(b"220 ready\r\n")
    while line := await reader.readline():
        match line.split():
            case [b"TYPE", _]:
                writer.write(b"200 good\r\n")
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


def download(lab: AgentLab, agent: RunningAgent, host: str, port: int) -> bytes:
    """Active mode through BIND; the data connection is moved on the way."""
    client = ActiveFtp(lab, agent, host, port)
    assert client.getwelcome() == "220 ready"
    got = bytearray()
    lte = lab.lab.link("lte")
    before: list[int] = []

    def take(data: bytes) -> None:
        got.extend(data)
        if len(got) < 500_000 or before:
            return
        flow = max(agent.client.flows(), key=lambda flow: float(flow["since"]))
        assert flow["destination"].startswith(f"{lab.server_host}:")
        assert (flow["datapath"], flow["link"]) == ("relay", "wifi")
        before.append(lte.counters().bytes_down)
        assert agent.run("move", flow["id"], "--to", "lte").returncode == 0

    assert client.retrbinary("RETR file", take) == "226 done"
    assert lte.counters().bytes_down - before[0] > 1_000_000
    client.close()
    return bytes(got)


@pytest.fixture
async def ftp(lab: AgentLab) -> AsyncIterator[tuple[str, int]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_ftp(lab, reader, writer)

    async with lab.server(serve) as endpoint:
        yield str(endpoint.host), endpoint.port


async def test_an_active_ftp_download_moves(lab: AgentLab, agent: RunningAgent, ftp: tuple[str, int]):
    agent.wait_authorised()
    assert await asyncio.to_thread(download, lab, agent, *ftp) == CONTENT


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
