from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest

from msocks.transport.reactor import FAILED, READABLE, WRITABLE, Reactor


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    made = Reactor(asyncio.get_running_loop())
    yield made
    made.close()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0.002)


async def test_a_change_is_told_once_and_begins_with_the_present_state(reactor: Reactor):
    here, there = socket.socketpair()
    with here, there:
        told: list[int] = []
        there.send(b"x")
        reactor.watch(here.fileno(), told.append)
        await turns()
        assert len(told) == 1
        assert told[0] & READABLE
        assert told[0] & WRITABLE
        there.close()
        await turns()
        assert told[-1] & READABLE
        assert told[-1] & FAILED
        reactor.unwatch(here.fileno())


async def test_a_descriptor_changes_hands_without_a_gap(reactor: Reactor):
    here, there = socket.socketpair()
    with here, there:
        first: list[int] = []
        second: list[int] = []
        reactor.watch(here.fileno(), first.append)
        there.send(b"x")
        await turns()
        reactor.watch(here.fileno(), second.append)
        await turns()
        assert second
        assert second[0] & READABLE
        there.send(b"y")
        count = len(first)
        await turns()
        assert len(first) == count
        reactor.unwatch(here.fileno())


async def test_what_was_reported_of_a_closed_descriptor_is_not_told_to_its_successor(reactor: Reactor):
    """Two are ready in one turn; the first to be served closes the other, whose number a new socket gets."""
    pairs = [socket.socketpair() for _ in range(2)]
    successors: list[tuple[socket.socket, socket.socket]] = []
    told: list[int] = []

    def replace_the_other(mine: int, _events: int) -> None:
        if successors:
            return
        other = pairs[1 - mine][0]
        number = other.fileno()
        reactor.unwatch(number)
        other.close()
        successors.append(socket.socketpair())
        successor = next(sock for sock in successors[0] if sock.fileno() == number)
        reactor.watch(number, told.append)
        assert successor.fileno() == number

    for index, (near, far) in enumerate(pairs):
        far.send(b"x")
        reactor.watch(near.fileno(), partial(replace_the_other, index))
    await turns()
    assert successors
    assert all(not events & READABLE for events in told), told
    for near, far in (*pairs, *successors):
        for sock in (near, far):
            if sock.fileno() >= 0:
                reactor.unwatch(sock.fileno())
            sock.close()


async def test_a_callback_that_raises_disturbs_no_other(reactor: Reactor):
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    pairs = [socket.socketpair() for _ in range(2)]
    told: list[int] = []

    def fail(_: int) -> None:
        raise RuntimeError

    reactor.watch(pairs[0][0].fileno(), fail)
    reactor.watch(pairs[1][0].fileno(), told.append)
    await turns()
    assert len(faults) == 1
    assert len(told) == 1
    for near, far in pairs:
        reactor.unwatch(near.fileno())
        near.close()
        far.close()


async def test_what_is_put_off_runs_in_the_next_turn_and_may_put_off_more(reactor: Reactor):
    order: list[str] = []

    def first() -> None:
        order.append("first")
        reactor.call_soon(lambda: order.append("third"))
        order.append("second")

    reactor.call_soon(first)
    assert order == []
    await turns()
    assert order == ["first", "second", "third"]
