"""Clients and servers of UDP for a lab: DNS by real programs, and a server of time and news made here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

from tests.agent.agent_lab import receive_exactly
from tests.client.mobile_lab import on_host

from msocks.protocol.socks5_udp import decode_udp, encode_udp
from msocks.values.endpoint import Endpoint
from msocks_lab import Lab, LabProcess

DNS_PORT = 53
ASSOCIATE = b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6)
# The seconds from 1900, where NTP begins, to 1970.
NTP_EPOCH_S = 2_208_988_800


# -- what runs in the lab -------------------------------------------------------------------------------------------


class DnsServer:
    """dnsmasq on the lab's server host, which logs where each query comes from."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.log = directory / "dnsmasq.log"
        options = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
        ]
        listen = [f"--listen-address={lab.server.ipv4}", "--bind-interfaces", f"--port={DNS_PORT}"]
        zone = ["--address=/lab.example/192.0.2.77", "--log-queries=extra", f"--log-facility={self.log}"]
        self.process = lab.server.popen(["dnsmasq", *options, *listen, *zone])
        lab.server.wait_listening(DNS_PORT, protocol="udp")

    def clients(self) -> dict[str, str]:
        """The address and port that asked, by name."""
        return {
            name: client for client, name in re.findall(r"\d+ (\S+/\d+) query\[A\] (\S+) from", self.log.read_text())
        }


class DnsClient:
    """The program `dns_client.py` on the lab's mobile host."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        program = str(Path(__file__).with_name("dns_client.py"))
        self.process: LabProcess = lab.mobile.popen(
            [sys.executable, program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, name: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name}\n".encode())
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.output()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def resolves(self, name: str) -> None:
        assert self.ask(name) == {"name": name, "addresses": ["192.0.2.77"]}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


class TimeServer(asyncio.DatagramProtocol):
    """Answers requests of SNTP (RFC 4330) by this host's clock; sends news, once a number, to whom asks for them."""

    def __init__(self) -> None:
        self.sources: list[tuple[str, int]] = []
        self.sizes: list[int] = []
        self.readers: dict[tuple[str, int], int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        self.sources.append(source)
        self.sizes.append(len(data))
        if data == b"news":
            self.readers.setdefault(source, 0)
        elif len(data) == 48 and data[0] & 7 == 3:
            now = ntp_time()
            self.transport.sendto(struct.pack(">BBbb20x", 0x24, 1, 4, -20) + data[40:48] + now + now, source)
        else:
            self.transport.sendto(data, source)

    async def tell(self) -> None:
        while True:
            for reader, number in self.readers.items():
                self.transport.sendto(b"%08d" % number, reader)
                self.readers[reader] = number + 1
            await asyncio.sleep(0.005)


def ntp_time() -> bytes:
    seconds, fraction = divmod(time.time(), 1)
    return struct.pack(">II", int(seconds) + NTP_EPOCH_S, int(fraction * 2**32))


@contextlib.asynccontextmanager
async def time_server(lab: Lab) -> AsyncIterator[tuple[TimeServer, Endpoint]]:
    with on_host(lab, "server"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((lab.server.ipv4, 0))
    server = TimeServer()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, sock=sock)
    telling = asyncio.create_task(server.tell())
    try:
        yield server, Endpoint.of(lab.server.ipv4, sock.getsockname()[1])
    finally:
        telling.cancel()
        transport.close()


class Program:
    """A program on the mobile host with a UDP association through the agent, in the test's own process."""

    def __init__(self, lab: Lab, agent: tuple[str, int]) -> None:
        with on_host(lab, "mobile"):
            self.connection = socket.create_connection(agent, timeout=10)
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.connection.sendall(ASSOCIATE)
        assert receive_exactly(self.connection, 2) == b"\x05\x00"
        reply = receive_exactly(self.connection, 10)
        assert reply[:4] == b"\x05\x00\x00\x01", reply
        self.relay = socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:], "big")
        self.sock.connect(self.relay)

    def send(self, destination: Endpoint, payload: bytes) -> None:
        self.sock.send(encode_udp(destination, payload))

    async def receive(self, within_s: float = 3.0) -> tuple[Endpoint, bytes]:
        loop = asyncio.get_running_loop()
        received = decode_udp(await asyncio.wait_for(loop.sock_recv(self.sock, 65536), within_s))
        return received.endpoint, received.payload

    async def asks_the_time(self, server: Endpoint) -> float:
        """One exchange of SNTP; the offset of the server's clock in seconds."""
        sent = ntp_time()
        began = time.time()
        self.send(server, b"\x23" + bytes(39) + sent)
        source, answer = await self.receive()
        assert (source, answer[24:32]) == (server, sent)
        seconds, fraction = cast(tuple[int, int], struct.unpack(">II", answer[40:]))
        return seconds - NTP_EPOCH_S + fraction / 2**32 - (began + time.time()) / 2

    def close(self) -> None:
        self.connection.close()
        self.sock.close()


@contextlib.contextmanager
def program_of(lab: Lab, agent: tuple[str, int]) -> Iterator[Program]:
    program = Program(lab, agent)
    try:
        yield program
    finally:
        program.close()
