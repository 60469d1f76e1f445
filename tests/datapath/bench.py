"""A session on the bench: a conduit between a server that the test plays and mobile legs that it plays as well."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from tests.datapath.late_server import LateServer
from tests.datapath.networks import Network

from msocks.datapath.interface import Attachment, Conduit, LegEnd
from msocks.protocol.leg import DatapathKind
from msocks.session.byte_budget import ByteBudget
from msocks.session.resume import ClientPosition, resume
from msocks.transport.kernel import prepare_leg

REPLY = b"<reply>"


class Owner:
    """Notes what it is told, and objects to being told within a call of its own."""

    def __init__(self, budget: ByteBudget | None = None) -> None:
        self.budget = budget
        self.legs_ended: list[tuple[int, LegEnd]] = []
        self.servers_lost: list[LegEnd] = []
        self.bytes_lost: list[str] = []
        self.finished = asyncio.Event()
        self._calling = False

    @contextmanager
    def calling(self) -> Iterator[None]:
        """The owner calls the conduit."""
        self._calling = True
        try:
            yield
        finally:
            self._calling = False

    def on_leg_ended(self, generation: int, end: LegEnd) -> None:
        assert not self._calling
        self.legs_ended.append((generation, end))

    def on_server_lost(self, end: LegEnd) -> None:
        assert not self._calling
        self.servers_lost.append(end)

    def on_bytes_lost(self, reason: str) -> None:
        assert not self._calling
        self.bytes_lost.append(reason)

    def on_finished(self) -> None:
        assert not self._calling
        self.finished.set()


@dataclass
class Bench:
    """See the module; the ends that the test plays are closed with it."""

    network: Network
    conduit: Conduit
    owner: Owner
    server: socket.socket
    waiting: tuple[socket.socket, socket.socket] | None  # the first leg, for which the server leg was prepared
    sockets: list[socket.socket] = field(default_factory=list)
    down_from: int = 0  # D of the last leg

    def mobile_leg(self) -> tuple[socket.socket, socket.socket]:
        """The mobile's end, and the proxy's, which is the caller's until it is attached."""
        waiting, self.waiting = self.waiting, None
        mobile, leg = waiting or self.network.mobile_leg()
        prepare_leg(mobile)
        self.sockets.append(mobile)
        return mobile, leg

    async def attach(
        self,
        generation: int,
        received: int = 0,
        upstream_from: int = 0,
        early: bytes = b"",
        handover: bool = False,
        split: bool = False,
        first_flight: int = 0,
    ) -> socket.socket:
        """Connect or reconnect in the order that the interface asks for; returns the mobile's end, the reply read."""
        mobile, leg = self.mobile_leg()
        position = ClientPosition(received, upstream_from, None, None, handover, first_flight)
        resume(position, self.conduit.state())
        self.conduit.stop_leg(handover=handover)
        await self.conduit.settle()
        carriage = self.conduit.carriage_for(leg, split=split)
        assert carriage.kind is not DatapathKind.NONE
        assert carriage.handover or not handover
        decided = resume(position, self.conduit.state())
        with self.owner.calling():
            self.conduit.attach(
                Attachment(leg, generation, REPLY, decided.down_from, decided.up_from, early, handover, split)
            )
        assert (self.conduit.kind, self.conduit.reason) == (carriage.kind, carriage.reason)
        self.down_from = decided.down_from
        assert await read(mobile, len(REPLY)) == REPLY
        await stands(self.server)
        return mobile


async def stands(sock: socket.socket) -> None:
    """Wait until it does; nothing to wait for where it is no server's."""
    if isinstance(sock, LateServer):
        await eventually(sock.stands)


async def read(sock: socket.socket, size: int) -> bytes:
    await stands(sock)
    data = b""
    while len(data) < size:
        piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, size - len(data)), 10)
        if not piece:
            break
        data += piece
    return data


async def write(sock: socket.socket, data: bytes) -> None:
    await stands(sock)
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(sock, data), 10)


async def read_into(target: bytearray, sock: socket.socket, until: int) -> None:
    await stands(sock)
    while len(target) < until:
        target += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, until - len(target)), 10)


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came about")
