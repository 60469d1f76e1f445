"""A UDP server in the test's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from msocks.values.endpoint import Endpoint


class UdpServer:
    """Answers each datagram with itself, and notes where they came from."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind((host, 0))
        self.endpoint = Endpoint.from_sockaddr(self.sock.getsockname())
        self.sources: list[tuple[Any, ...]] = []
        self.received: list[bytes] = []
        asyncio.get_running_loop().add_reader(self.sock, self._answer)

    def _answer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, source = self.sock.recvfrom(65536)
                self.sources.append(source)
                self.received.append(data)
                self.sock.sendto(data, source)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()
