"""What the interface promises besides the bytes: who owns a socket, who is called when, what changes nothing."""

from __future__ import annotations

import asyncio
import socket

import pytest
from tests.datapath.bench import REPLY, Bench, eventually, read, write

from msocks.datapath.interface import Attachment, LegEnd
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.transport.kernel import bytes_unread, reset_on_close

# For what must not come.
A_WHILE_S = 0.1
# More than all buffers between the server and a mobile that does not read.
BIG = 30_000_000


def reset(sock: socket.socket) -> None:
    reset_on_close(sock)
    sock.close()


async def test_nothing_carries_a_session_before_its_first_leg(bench: Bench) -> None:
    assert (bench.conduit.kind, bench.conduit.reason) == (DatapathKind.NONE, DatapathReason.UNSPECIFIED)
    _, leg = bench.mobile_leg()
    carriage = bench.conduit.carriage_for(leg)
    leg.close()
    assert carriage.kind is bench.network.datapath.kind
    assert not carriage.handover
    assert bench.conduit.kind is DatapathKind.NONE


async def test_to_ask_what_would_carry_changes_nothing(bench: Bench) -> None:
    old = await bench.attach(1)
    await write(bench.server, b"before ")
    assert await read(old, 7) == b"before "
    await eventually(lambda: bench.conduit.state().down_acknowledged == 7)
    before = bench.conduit.state()
    new, leg = bench.mobile_leg()
    bench.conduit.carriage_for(leg)
    assert bench.conduit.state() == before
    await write(bench.server, b"after")
    assert await read(old, 5) == b"after"
    await write(old, b"up")
    assert await read(bench.server, 2) == b"up"
    # It stays the caller's, who may say to the client whatever he likes.
    assert leg.send(b"refused") == 7
    assert await read(new, 7) == b"refused"
    leg.close()


async def test_a_lost_leg_gets_some_answer(bench: Bench) -> None:
    await bench.attach(1)
    mobile, leg = bench.mobile_leg()
    reset(mobile)
    await asyncio.sleep(A_WHILE_S)
    bench.conduit.carriage_for(leg)
    leg.close()


async def test_only_a_live_leg_can_hand_over(bench: Bench) -> None:
    mobile = await bench.attach(1)
    _, leg = bench.mobile_leg()
    assert bench.conduit.carriage_for(leg).handover
    reset(mobile)
    await eventually(lambda: bench.owner.legs_ended == [(1, LegEnd.RESET)])
    assert not bench.conduit.carriage_for(leg).handover
    with pytest.raises(ValueError, match="leg"):
        bench.conduit.attach(Attachment(leg, 2, REPLY, 0, 0, handover=True))
    leg.close()


async def test_a_leg_that_was_lost_before_it_was_attached_is_told_afterwards(bench: Bench) -> None:
    await bench.attach(1)
    mobile, leg = bench.mobile_leg()
    reset(mobile)
    await asyncio.sleep(A_WHILE_S)
    bench.conduit.stop_leg()
    await bench.conduit.settle()
    with bench.owner.calling():
        bench.conduit.attach(Attachment(leg, 2, REPLY, 0, 0))
    assert bench.owner.legs_ended == []
    await eventually(lambda: bench.owner.legs_ended == [(2, LegEnd.RESET)])
    await write(bench.server, b"held")
    again = await bench.attach(3)
    assert await read(again, 4) == b"held"
    assert bench.owner.legs_ended == [(2, LegEnd.RESET)]


async def test_a_leg_that_is_lost_while_stopped_is_told_after_the_restart(bench: Bench) -> None:
    mobile = await bench.attach(1)
    bench.conduit.stop_leg()
    await bench.conduit.settle()
    await write(bench.server, b"unsent")
    await asyncio.sleep(A_WHILE_S)
    reset(mobile)  # nothing of it has come to the event loop when the leg is restarted
    with bench.owner.calling():
        bench.conduit.restart_leg()
    await eventually(lambda: bench.owner.legs_ended == [(1, LegEnd.RESET)])
    again = await bench.attach(2)
    assert await read(again, 6) == b"unsent"


async def test_the_end_of_a_leg_is_told_once(bench: Bench) -> None:
    """A handover whose new leg is reset and whose old one breaks off: two reasons to lose the new leg."""
    old = await bench.attach(1)
    new = await bench.attach(2, upstream_from=10, handover=True)
    reset(new)
    await eventually(lambda: bench.owner.legs_ended == [(2, LegEnd.RESET)])
    reset(old)
    await asyncio.sleep(A_WHILE_S)
    assert bench.owner.legs_ended == [(2, LegEnd.RESET)]
    again = await bench.attach(3)
    await write(again, b"0123456789")
    assert await read(bench.server, 10) == b"0123456789"


async def test_the_end_of_a_leg_that_was_replaced_is_not_told(bench: Bench) -> None:
    old = await bench.attach(1)
    await write(bench.server, b"unread by the mobile, so that it closes with RST")
    await eventually(lambda: bytes_unread(old) > 0)
    new = await bench.attach(2)
    reset(old)
    await asyncio.sleep(A_WHILE_S)
    assert bench.owner.legs_ended == []
    await write(new, b"on")
    assert await read(bench.server, 2) == b"on"


async def test_the_loss_of_the_server_is_told_once(bench: Bench) -> None:
    mobile = await bench.attach(1)
    reset(bench.server)
    await eventually(lambda: bench.owner.servers_lost == [LegEnd.RESET])
    await write(mobile, b"to nobody")
    await asyncio.sleep(A_WHILE_S)
    assert bench.owner.servers_lost == [LegEnd.RESET]


async def test_after_close_nobody_is_called(bench: Bench) -> None:
    mobile = await bench.attach(1)
    reset(mobile)
    reset(bench.server)
    bench.conduit.close(reset=True)
    await asyncio.sleep(A_WHILE_S)
    assert (bench.owner.legs_ended, bench.owner.servers_lost) == ([], [])
    assert not bench.owner.finished.is_set()


async def test_what_an_attach_was_to_tell_is_not_told_after_close(bench: Bench) -> None:
    mobile, leg = bench.mobile_leg()
    reset(mobile)
    await asyncio.sleep(A_WHILE_S)
    bench.conduit.attach(Attachment(leg, 1, REPLY, 0, 0))
    bench.conduit.close(reset=True)
    await asyncio.sleep(A_WHILE_S)
    assert bench.owner.legs_ended == []


@pytest.mark.parametrize(
    ("generation", "down_from", "up_from"),
    [(1, 10, 2), (2, 4, 2), (2, 11, 2), (2, 10, 3)],
    ids=["generation", "D too low", "D too high", "A too high"],
)
async def test_a_leg_that_cannot_be_attached_stays_the_callers(
    bench: Bench, generation: int, down_from: int, up_from: int
) -> None:
    old = await bench.attach(1)
    await write(old, b"up")
    assert await read(bench.server, 2) == b"up"
    await write(bench.server, b"downstream")
    assert await read(old, 10) == b"downstream"
    await eventually(lambda: bench.conduit.state().down_acknowledged == 10)
    new, leg = bench.mobile_leg()
    bench.conduit.stop_leg()
    await bench.conduit.settle()
    before = bench.conduit.state()
    with pytest.raises(ValueError, match=r"\d"):
        bench.conduit.attach(Attachment(leg, generation, REPLY, down_from, up_from, b"early"))
    assert bench.conduit.state() == before
    bench.conduit.restart_leg()
    await write(bench.server, b"still the old leg")
    assert await read(old, 17) == b"still the old leg"
    assert leg.send(b"refused") == 7
    assert await read(new, 7) == b"refused"
    leg.close()


async def test_a_leg_that_is_to_hand_over_is_sent_nothing_new(bench: Bench) -> None:
    old = await bench.attach(1)
    await write(bench.server, b"old;")
    assert await read(old, 4) == b"old;"
    _, leg = bench.mobile_leg()
    bench.conduit.stop_leg(handover=True)
    await bench.conduit.settle()
    assert bench.conduit.state().down_sent == 4
    await write(bench.server, b"new")
    bench.server.shutdown(socket.SHUT_WR)
    await write(old, b"goes on receiving;")
    assert await read(bench.server, 18) == b"goes on receiving;"
    await asyncio.sleep(A_WHILE_S)
    assert bench.conduit.state().down_sent == 4
    assert bytes_unread(old) == 0
    with bench.owner.calling():
        bench.conduit.attach(Attachment(leg, 2, REPLY, 4, 18, handover=True))
    new = bench.sockets[-1]
    assert await read(new, len(REPLY) + 4) == REPLY + b"new"
    assert await read(old, 1) == b""
    assert bench.owner.legs_ended == []


@pytest.mark.parametrize("offset", [-1, 1])
async def test_a_handover_begins_at_the_end_of_what_was_sent(bench: Bench, offset: int) -> None:
    old = await bench.attach(1)
    sending = asyncio.create_task(write(bench.server, bytes(BIG)))
    await asyncio.sleep(A_WHILE_S)  # the mobile does not read: what was sent is not all acknowledged
    _, leg = bench.mobile_leg()
    bench.conduit.stop_leg(handover=True)
    await bench.conduit.settle()
    state = bench.conduit.state()
    # In a splice the mobile's kernel is the receiver, whose window is all that is on the way.
    relays = bench.conduit.kind is DatapathKind.RELAY
    assert (state.down_acknowledged < state.down_sent) is relays
    assert 0 < state.down_sent < BIG
    with pytest.raises(ValueError, match=r"\d"):
        bench.conduit.attach(Attachment(leg, 2, REPLY, state.down_sent + offset, 0, handover=True))
    leg.close()
    bench.conduit.restart_leg()
    assert await read(old, BIG) == bytes(BIG)
    await sending


async def test_where_a_stopped_session_is_does_not_change(bench: Bench) -> None:
    """The leg before, which was handing over, has its bytes acknowledged meanwhile: a new leg still may begin there."""
    oldest = await bench.attach(1)
    sending = asyncio.create_task(write(bench.server, bytes(BIG)))
    await asyncio.sleep(A_WHILE_S)
    await bench.attach(2, handover=True)
    bench.conduit.stop_leg()
    await bench.conduit.settle()
    before = bench.conduit.state()
    assert (before.down_acknowledged < before.down_available) is (bench.conduit.kind is DatapathKind.RELAY)
    await read(oldest, min(before.down_acknowledged + 1, before.down_available - bench.down_from))
    await asyncio.sleep(A_WHILE_S)
    assert bench.conduit.state() == before
    new, leg = bench.mobile_leg()
    bench.conduit.attach(Attachment(leg, 3, REPLY, before.down_acknowledged, 0))
    expected = REPLY + bytes(BIG - before.down_acknowledged)
    assert await read(new, len(expected)) == expected
    await sending


async def test_to_restart_where_nothing_was_stopped_does_nothing(bench: Bench) -> None:
    bench.conduit.restart_leg()
    mobile = await bench.attach(1)
    bench.conduit.restart_leg()
    await write(bench.server, b"once")
    mobile.shutdown(socket.SHUT_WR)
    bench.server.shutdown(socket.SHUT_WR)
    assert await read(mobile, 100) == b"once"


async def test_a_hang_up_needs_nothing_before_it(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"all of it")
    await eventually(lambda: bench.conduit.state().up_taken == 9)
    with bench.owner.calling():
        bench.conduit.hang_up(9)
    assert await read(bench.server, 100) == b"all of it"
    await write(bench.server, b"to nobody")
    await asyncio.sleep(A_WHILE_S)
    assert bytes_unread(mobile) == 0
    assert not bench.owner.finished.is_set()
    bench.server.close()
    await asyncio.wait_for(bench.owner.finished.wait(), 10)


async def test_a_hang_up_after_which_the_server_is_reset_tells_that(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"all of it")
    assert await read(bench.server, 9) == b"all of it"
    bench.conduit.hang_up(9)
    assert await read(bench.server, 1) == b""
    reset(bench.server)
    await eventually(lambda: bench.owner.servers_lost == [LegEnd.RESET])
    assert not bench.owner.finished.is_set()


async def test_urgent_bytes_stay_in_the_stream(bench: Bench) -> None:
    mobile = await bench.attach(1)
    for sender, receiver in ((bench.server, mobile), (mobile, bench.server)):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sender.send(b"abc")
        sender.send(b"d", socket.MSG_OOB)
        sender.send(b"ef")
        assert await read(receiver, 6) == b"abcdef"


@pytest.mark.parametrize("first_split", [True, False])
async def test_what_a_middlebox_has_acked_counts_as_received_when_the_mobile_says_so(
    bench: Bench, first_split: bool
) -> None:
    """From the first leg on, or of a session that was carried otherwise before."""
    generation = 1
    mobile = await bench.attach(generation, split=first_split)
    await write(bench.server, b"one ")
    await write(mobile, b"up one")
    assert (await read(mobile, 4), await read(bench.server, 6)) == (b"one ", b"up one")
    if not first_split:
        await eventually(lambda: bench.conduit.state().up_taken == 6 and bench.conduit.state().down_acknowledged == 4)
        generation = 2
        mobile = await bench.attach(generation, 4, 6, split=True)
    assert bench.conduit.kind is DatapathKind.RELAY
    await write(bench.server, b"two three")
    assert await read(mobile, 9) == b"two three"  # so its kernel has ACKed it
    with bench.owner.calling():
        bench.conduit.confirm(generation, 8, at_end=False, split=True)
        bench.conduit.confirm(generation, 6, at_end=False, split=True)  # overtaken
        bench.conduit.confirm(generation, 10**9, at_end=True, split=True)  # a lie
    await asyncio.sleep(A_WHILE_S)
    assert bench.conduit.state().down_acknowledged == 8
    reset(mobile)
    await eventually(lambda: len(bench.owner.legs_ended) == 1)
    last = await bench.attach(generation + 1, 8, 6)
    assert bench.down_from == 8
    assert await read(last, 5) == b"three"
    await write(last, b", up two")
    assert await read(bench.server, 8) == b", up two"
    assert not bench.owner.servers_lost
