"""Leg streams over a leg whose ACKs are a middlebox's: only the other end's word lets go of bytes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from tests.leg_pair import tcp_pair
from tests.transport.test_leg_stream import Program

from msocks.transport.reactor import Reactor
from msocks.transport.sweep import Sweep

SIZE = 50_000


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    made = Reactor(asyncio.get_running_loop())
    yield made
    made.close()


@pytest.fixture
async def sender(reactor: Reactor) -> AsyncIterator[Program]:
    """Has written its stream and ended it."""
    program = Program(reactor, Sweep(reactor), 1, SIZE)
    yield program
    program.stream.close()


def read_all(sock: socket.socket) -> int:
    """Bytes that are there now."""
    count = 0
    try:
        while data := sock.recv(65536):
            count += len(data)
    except BlockingIOError:
        pass
    return count


def state(program: Program) -> tuple[bool, bool]:
    """Whether all has arrived, and whether the other end has to say so."""
    return program.acknowledged.is_set(), program.stream.awaits_word


async def sent_on(sender: Program, *, split: bool) -> tuple[socket.socket, socket.socket]:
    """A leg on which everything was sent, ACKed by a kernel, and then lost with it."""
    near, far = tcp_pair()
    sender.stream.send_on(near, 1, 0, split=split)
    sender.stream.receive_on(near, 1, 0)
    sender.write_some()
    for _ in range(100):
        await asyncio.sleep(0.002)
        read_all(far)
        sender.stream.flush()
    return near, far


@pytest.mark.parametrize("found_out_late", [False, True])
async def test_what_a_middlebox_has_acked_is_kept_until_the_other_end_has_it(sender: Program, found_out_late: bool):
    near, far = tcp_pair()
    sender.stream.send_on(near, 1, 0, split=not found_out_late)
    sender.stream.receive_on(near, 1, 0)
    if found_out_late:
        sender.stream.distrust()
    sender.write_some()
    while read_all(far) or sender.stream.sent < SIZE:
        await asyncio.sleep(0.01)
        sender.stream.flush()
    sender.stream.sweep()
    assert (sender.stream.acknowledged(), sender.stream.retained) == (0, SIZE)
    assert sender.stream.awaits_word
    sender.stream.confirm(20_000, False)
    assert (sender.stream.acknowledged(), sender.stream.retained) == (20_000, SIZE - 20_000)
    sender.stream.confirm(10_000, False)  # an older word, overtaken
    assert sender.stream.retained == SIZE - 20_000
    sender.stream.confirm(SIZE + 1, True)  # a lie
    assert sender.stream.retained == SIZE - 20_000
    far.close()


async def test_a_stream_has_arrived_when_its_end_is_confirmed_and_not_before(sender: Program):
    _near, far = await sent_on(sender, split=True)
    sender.stream.confirm(SIZE, False)
    sender.stream.sweep()
    assert state(sender) == (False, True), "the FIN may lie in the middlebox"
    sender.stream.confirm(SIZE, True)
    assert state(sender) == (True, False)
    far.close()


async def test_the_next_leg_brings_what_was_lost_with_the_middlebox(sender: Program):
    _near, far = await sent_on(sender, split=True)
    sender.stream.confirm(30_000, False)
    far.close()
    near, far = tcp_pair()
    begins_at = sender.stream.freeze()
    assert begins_at == 30_000
    sender.stream.send_on(near, 2, begins_at)
    sender.stream.receive_on(near, 2, 0)
    count = 0
    for _ in range(20):
        await asyncio.sleep(0.005)
        count += read_all(far)
    assert count == SIZE - 30_000
    sender.stream.sweep()
    assert sender.acknowledged.is_set(), "the ACKs of a leg without a middlebox count"
    far.close()


async def test_without_a_middlebox_acks_count(sender: Program):
    _near, far = await sent_on(sender, split=False)
    sender.stream.sweep()
    assert sender.acknowledged.is_set()
    assert not sender.stream.awaits_word
    far.close()
