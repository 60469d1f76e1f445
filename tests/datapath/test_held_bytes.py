"""What the relay holds for mobile nodes that do not read, or are gone: bounded for all sessions together."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from tests.datapath.bench import REPLY, Owner, eventually, read
from tests.datapath.networks import on_loopback, relay

from msocks.datapath.interface import Attachment, Conduit
from msocks.session.byte_budget import SHARE_BYTES, ByteBudget
from msocks.transport.kernel import prepare_leg
from msocks.transport.reactor import Reactor

SESSIONS = 12
LIMIT = 256 * 1024
EACH = 3_000_000


@dataclass
class Session:
    """One download whose mobile node reads when the test says so."""

    conduit: Conduit
    server: socket.socket
    mobile: socket.socket
    sender: asyncio.Task[None]
    digest: bytes


@dataclass
class World:
    """Sessions that share a budget."""

    budget: ByteBudget
    sessions: list[Session]


async def send(server: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(server, data)
        server.shutdown(socket.SHUT_WR)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Every server sends as fast as it can, no mobile node reads."""
    reactor = Reactor(asyncio.get_running_loop())
    budget = ByteBudget(LIMIT)
    sessions = []
    with on_loopback(relay)(reactor) as network:
        for number in range(SESSIONS):
            mobile, leg = network.mobile_leg()
            prepare_leg(mobile)
            server, server_leg = network.server_leg(leg)
            conduit = network.datapath.open(server_leg, Owner(budget), resumable=True)
            conduit.attach(Attachment(leg, 1, REPLY, 0, 0))
            data = random.Random(number).randbytes(EACH)
            sender = asyncio.get_running_loop().create_task(send(server, data))
            sessions.append(Session(conduit, server, mobile, sender, hashlib.sha256(data).digest()))
        yield World(budget, sessions)
        for session in sessions:
            session.sender.cancel()
            session.conduit.close(reset=True)
            session.server.close()
            session.mobile.close()
    assert budget.held == 0
    reactor.close()


async def settled(budget: ByteBudget) -> int:
    """What is held once nothing more moves."""
    before = -1
    while before != budget.held:
        before = budget.held
        await asyncio.sleep(0.2)
    return before


async def digest(mobile: socket.socket) -> bytes:
    await read(mobile, len(REPLY))
    found = hashlib.sha256()
    while piece := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(mobile, 65536), 20):
        found.update(piece)
    return found.digest()


async def test_all_sessions_together_hold_no_more_than_the_limit_and_their_shares(world: World) -> None:
    held = await settled(world.budget)
    assert LIMIT <= held <= LIMIT + SESSIONS * SHARE_BYTES
    for session in world.sessions:
        assert session.conduit.state().down_available >= SHARE_BYTES, "nobody is kept from its share"


async def test_a_session_that_is_read_goes_on_while_the_others_hold_everything(world: World) -> None:
    await settled(world.budget)
    assert await digest(world.sessions[-1].mobile) == world.sessions[-1].digest
    assert world.budget.held >= LIMIT - SHARE_BYTES


async def test_every_byte_arrives_once_the_mobile_nodes_read(world: World) -> None:
    await settled(world.budget)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, world.budget.held)
            await asyncio.sleep(0)

    watching = asyncio.get_running_loop().create_task(watch())
    found = await asyncio.gather(*(digest(session.mobile) for session in world.sessions))
    watching.cancel()
    assert found == [session.digest for session in world.sessions]
    assert most <= LIMIT + SESSIONS * SHARE_BYTES
    await eventually(lambda: world.budget.held == 0)


async def test_what_a_parked_session_holds_is_given_back_when_it_ends(world: World) -> None:
    await settled(world.budget)
    for session in world.sessions[1:]:
        session.mobile.close()
    await asyncio.sleep(0.1)
    assert world.budget.held >= LIMIT - EACH // 10
    for session in world.sessions[1:]:
        session.conduit.close(reset=True)
    assert world.budget.held <= LIMIT
    assert await digest(world.sessions[0].mobile) == world.sessions[0].digest
