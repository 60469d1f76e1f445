"""Bytes that were sent behind a request, and that this host's kernel has acknowledged: the server gets all of them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.datapath.bench import REPLY, Owner, eventually, read, read_into, write
from tests.datapath.networks import over_veth, splice

from msocks.datapath.interface import Attachment, Conduit
from msocks.protocol.leg import DatapathKind
from msocks.transport.kernel import bytes_unread
from msocks.transport.reactor import Reactor

_SO_RCVBUFFORCE = 33
DEAF = "table inet deaf { chain input { type filter hook input priority 0; tcp flags & (psh | ack) != 0 drop; }; }"


class Session:
    """A conduit whose mobile has sent before it was answered."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.mobile, self.leg = network.mobile_leg()
        self.server, server_leg = network.server_leg(self.leg)
        self.owner = Owner()
        self.conduit: Conduit = network.datapath.open(server_leg, self.owner, resumable=True)
        self.sockets = [self.mobile, self.server]

    async def attach(self, generation: int, up_from: int, mobile: socket.socket, leg: socket.socket) -> None:
        assert self.conduit.carriage_for(leg).kind is DatapathKind.SPLICE
        state = self.conduit.state()
        self.conduit.attach(Attachment(leg, generation, REPLY, state.down_acknowledged, up_from))
        assert await read(mobile, len(REPLY)) == REPLY

    async def begin(self, early: bytes) -> None:
        await write(self.mobile, early)
        await eventually(lambda: bytes_unread(self.leg) == len(early))
        await self.attach(1, 0, self.mobile, self.leg)

    async def move(self, up_from: int) -> None:
        self.conduit.stop_leg()
        await self.conduit.settle()
        self.mobile, leg = self.network.mobile_leg()
        self.sockets.append(self.mobile)
        await self.attach(2, up_from, self.mobile, leg)

    @contextmanager
    def deaf_server(self) -> Iterator[None]:
        """Nothing but handshakes gets to the server in this block."""
        with self.network._hosts.server.entered():
            _nft(DEAF)
        yield
        with self.network._hosts.server.entered():
            _nft("delete table inet deaf")


def _nft(commands: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=commands, text=True, check=True)


@pytest.fixture
async def session() -> AsyncIterator[Session]:
    reactor = Reactor(asyncio.get_running_loop())
    with over_veth(splice)(reactor) as network:
        network._proxy.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)  # type: ignore[attr-defined]
        made = Session(network)
        yield made
        made.conduit.close(reset=True)
        for sock in made.sockets:
            sock.close()
    reactor.close()


async def test_more_than_a_megabyte(session: Session):
    early = os.urandom(3_000_000)
    await session.begin(early)
    await write(session.mobile, b"and on")
    got = bytearray()
    began = time.monotonic()
    await read_into(got, session.server, len(early) + 6)
    assert got == early + b"and on"
    assert time.monotonic() - began < 5


async def test_they_are_said_until_the_server_has_them(session: Session, monkeypatch: pytest.MonkeyPatch):
    """However often they are lost; here each loss is waited for a short while only."""
    monkeypatch.setattr("msocks.datapath.splice.owed._MOST_S", 0.2)
    with session.deaf_server():
        await session.begin(b"early")
        await asyncio.sleep(3)
    assert await read(session.server, 5) == b"early"


async def test_a_leg_that_comes_next_changes_nothing_of_that(session: Session):
    early = os.urandom(50_000)
    with session.deaf_server():
        await session.begin(early)
        # The mobile was told that its bytes have arrived.
        assert session.conduit.state().up_taken == len(early)
        await session.move(len(early))
        await write(session.mobile, b"and on")
    got = bytearray()
    await read_into(got, session.server, len(early) + 6)
    assert got == early + b"and on"


@pytest.mark.long
async def test_a_mobile_that_hangs_up_does_not_take_them_with_it(session: Session):
    early = os.urandom(200_000)
    with session.deaf_server():
        await session.begin(early)
        session.conduit.hang_up(session.conduit.state().up_taken)
        await asyncio.sleep(0.1)
    got = bytearray()
    await read_into(got, session.server, len(early))
    assert got == early
    assert await read(session.server, 1) == b""
    session.server.close()
    await asyncio.wait_for(session.owner.finished.wait(), 5)


async def test_a_server_that_does_not_read_gets_them_when_it_does(session: Session):
    early = os.urandom(2_000_000)
    session.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
    await session.begin(early)
    await asyncio.sleep(1)
    got = bytearray()
    await read_into(got, session.server, len(early))
    assert got == early
