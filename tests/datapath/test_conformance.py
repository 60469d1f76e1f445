"""What every datapath does with the bytes, whichever it is: driven through the interface, judged at the two ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import time

import pytest
from tests.datapath.bench import REPLY, Bench, eventually, read, read_into, write

from msocks.datapath.interface import Attachment, LegEnd
from msocks.datapath.splice.rebuild import vanish
from msocks.protocol.leg import DatapathKind
from msocks.session.resume import StreamState
from msocks.transport.kernel import bytes_unacknowledged, reset_on_close


@pytest.mark.every_family
async def test_bytes_go_both_ways_behind_the_reply(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"request")
    assert await read(bench.server, 7) == b"request"
    await write(bench.server, b"answer")
    assert await read(mobile, 6) == b"answer"
    await eventually(lambda: (bench.conduit.counters().up, bench.conduit.counters().down) == (7, 6))


@pytest.mark.every_family
async def test_a_server_that_speaks_first_is_heard(bench: Bench) -> None:
    speaking = asyncio.create_task(write(bench.server, b"220 ready\r\n"))
    await asyncio.sleep(0)
    mobile = await bench.attach(1)
    await speaking
    assert await read(mobile, 11) == b"220 ready\r\n"


@pytest.mark.every_family
async def test_bytes_behind_the_request_come_first(bench: Bench) -> None:
    mobile = await bench.attach(1, early=b"hello, ")
    await write(mobile, b"server")
    assert await read(bench.server, 13) == b"hello, server"


async def test_half_close_from_the_mobile(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"all of it")
    mobile.shutdown(socket.SHUT_WR)
    assert await read(bench.server, 100) == b"all of it"
    await write(bench.server, b"still here")
    assert await read(mobile, 10) == b"still here"
    assert bench.conduit.state().up_fin == 9


async def test_half_close_from_the_server(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(bench.server, b"all of it")
    bench.server.shutdown(socket.SHUT_WR)
    assert await read(mobile, 100) == b"all of it"
    await write(mobile, b"still here")
    assert await read(bench.server, 10) == b"still here"
    assert bench.conduit.state().down_fin == 9


@pytest.mark.every_family
async def test_both_ends_make_it_finished(bench: Bench) -> None:
    mobile = await bench.attach(1)
    mobile.shutdown(socket.SHUT_WR)
    bench.server.shutdown(socket.SHUT_WR)
    assert await read(mobile, 1) == b""
    assert await read(bench.server, 1) == b""
    await asyncio.wait_for(bench.owner.finished.wait(), 10)
    assert bench.owner.servers_lost == []


async def test_a_reset_of_the_mobile_leg_only_detaches(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"one ")
    assert await read(bench.server, 4) == b"one "
    mobile.close()  # RST
    await eventually(lambda: bench.owner.legs_ended == [(1, LegEnd.RESET)])
    await write(bench.server, b"held")
    mobile = await bench.attach(2, received=0, upstream_from=4)
    assert await read(mobile, 4) == b"held"
    await write(mobile, b"two")
    assert await read(bench.server, 3) == b"two"


async def test_a_mobile_that_is_gone_when_its_first_reply_comes_can_come_again(bench: Bench) -> None:
    """Its host answers the reply with an RST: on these networks before the call that writes the reply has returned."""
    mobile, leg = bench.mobile_leg()
    vanish(mobile)
    bench.conduit.stop_leg()
    await bench.conduit.settle()
    bench.conduit.carriage_for(leg)
    with bench.owner.calling():
        bench.conduit.attach(Attachment(leg, 1, REPLY, 0, 0, b""))
    await eventually(lambda: bool(bench.owner.legs_ended))
    assert bench.owner.legs_ended == [(1, LegEnd.RESET)]
    mobile = await bench.attach(2)
    await write(mobile, b"request")
    assert await read(bench.server, 7) == b"request"
    await write(bench.server, b"answer")
    assert await read(mobile, 6) == b"answer"


@pytest.mark.every_family
async def test_a_reset_of_the_server_leg_is_told(bench: Bench) -> None:
    await bench.attach(1)
    reset_on_close(bench.server)
    bench.server.close()
    await eventually(lambda: bench.owner.servers_lost == [LegEnd.RESET])


async def test_an_abort_resets_the_server(bench: Bench) -> None:
    await bench.attach(1)
    bench.conduit.close(reset=True)
    with pytest.raises(ConnectionResetError):
        await read(bench.server, 1)


@pytest.mark.every_family
async def test_what_the_mobile_has_not_received_is_sent_again(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(bench.server, b"x" * 5000)
    await eventually(lambda: bench.conduit.state().down_acknowledged == 5000)
    # Its kernel has ACKed 5000; a leg that says R = 1000 gets the rest from there on, not from R.
    again = await bench.attach(2, received=1000)
    await write(bench.server, b"y")
    assert await read(again, 1) == b"y"
    assert await read(mobile, 5000) == b"x" * 5000  # the old leg's queue stays readable


async def test_upstream_that_was_taken_already_is_skipped(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"0123456789")
    assert await read(bench.server, 10) == b"0123456789"
    again = await bench.attach(2, upstream_from=4)
    await write(again, b"456789abc")
    assert await read(bench.server, 3) == b"abc"


@pytest.mark.parametrize(
    ("begins_at", "goes_on_at"),
    [(8, 12), (10, 14), (6, 10), (12, 10), (4, 10)],
    ids=["joins", "follows", "repeats", "is beyond", "is behind"],
)
async def test_a_first_flight_is_of_use_or_in_vain_and_no_byte_is_lost(
    bench: Bench, begins_at: int, goes_on_at: int
) -> None:
    stream, flight = b"0123456789abcdefghij", 4
    mobile = await bench.attach(1)
    await write(mobile, stream[:10])
    assert await read(bench.server, 10) == stream[:10]
    await eventually(lambda: bench.conduit.state().up_taken == 10)
    # Half of it came with the request, the other half comes by itself.
    early, late = stream[begins_at : begins_at + 2], stream[begins_at + 2 : begins_at + flight]
    again = await bench.attach(2, upstream_from=begins_at, first_flight=flight, early=early)
    await write(again, late + stream[goes_on_at:])
    again.shutdown(socket.SHUT_WR)
    assert await read(bench.server, 11) == stream[10:]


async def test_the_unread_queue_of_the_old_leg_goes_first(bench: Bench) -> None:
    mobile = await bench.attach(1)
    sent = 0
    blob = bytes(range(256)) * 256
    for _ in range(20):  # the server does not read: everything fills
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += mobile.send(blob[sent % len(blob) :])
        await asyncio.sleep(0.01)
    taken = bench.conduit.state().up_taken
    again = await bench.attach(2, upstream_from=taken)
    await write(again, b"end")
    again.shutdown(socket.SHUT_WR)
    received = await read(bench.server, taken + 3)
    assert received[-3:] == b"end"
    assert received[:taken] == (blob * (taken // len(blob) + 1))[:taken]
    assert taken > len(blob)


async def test_a_leg_can_be_restarted_after_a_refusal(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(bench.server, b"before ")
    bench.conduit.stop_leg()
    await bench.conduit.settle()
    await write(bench.server, b"after")
    bench.conduit.restart_leg()
    assert await read(mobile, 12) == b"before after"


async def test_a_parked_session_goes_on_at_once_with_what_the_server_sent_meanwhile(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(bench.server, b"before ")
    assert await read(mobile, 7) == b"before "
    bench.conduit.park(7)
    await bench.conduit.settle()
    await write(bench.server, b"while ")
    await asyncio.sleep(1.7)
    await write(bench.server, b"parked")
    again = await bench.attach(2, received=7)
    began = time.monotonic()
    assert await read(again, 12) == b"while parked"
    # A server that nobody wakes has sent after 0.2, 0.6 and 1.4 s, and does so again after 3 s.
    assert time.monotonic() - began < 0.8
    await write(again, b"and up")
    assert await read(bench.server, 6) == b"and up"


async def test_what_a_parked_session_is_told_is_believed_where_it_can_be_true(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(bench.server, b"all that was sent")
    assert await read(mobile, 17) == b"all that was sent"
    await eventually(lambda: bench.conduit.state().down_acknowledged == 17)
    for received in (1 << 40, 18, 3):
        bench.conduit.park(received)
        assert bench.conduit.state().down_acknowledged == 17
    again = await bench.attach(2, received=17)
    await write(bench.server, b", more")
    assert await read(again, 6) == b", more"


@pytest.mark.every_family
async def test_a_handover_lets_the_old_leg_deliver_what_was_sent_on_it(bench: Bench) -> None:
    old = await bench.attach(1)
    await write(old, b"up, old;")
    await write(bench.server, b"down, old;" * 1000)
    await eventually(lambda: bench.conduit.state().down_sent == 10_000)
    new = await bench.attach(2, upstream_from=15, handover=True)
    assert bench.down_from == 10_000
    await write(new, b"up, new")
    await write(bench.server, b"down, new")
    assert await read(new, 9) == b"down, new"
    assert await read(bench.server, 8) == b"up, old;"
    await write(old, b" to end")  # sent before the mobile said where its old leg ends, and late
    assert await read(bench.server, 14) == b" to endup, new"
    assert await read(old, 10_000) == b"down, old;" * 1000
    assert await read(old, 1) == b""  # closed in order, not reset
    assert bench.owner.legs_ended == []


async def test_a_handover_that_breaks_off_is_mended_by_a_takeover(bench: Bench) -> None:
    old = await bench.attach(1)
    await write(old, b"0123")
    assert await read(bench.server, 4) == b"0123"
    new = await bench.attach(2, upstream_from=10, handover=True)
    await write(new, b"abc")
    old.close()  # with bytes 4 to 9 unsent
    again = await bench.attach(3, upstream_from=4)
    await write(again, b"456789abc")
    assert await read(bench.server, 9) == b"456789abc"
    if bench.conduit.kind is DatapathKind.RELAY:  # in a splice nobody is left who could say so
        with pytest.raises(ConnectionResetError):
            await read(new, 1)


async def test_what_the_new_leg_of_a_handover_has_acknowledged_is_never_thrown_away(bench: Bench) -> None:
    old = await bench.attach(1)
    new = await bench.attach(2, upstream_from=10, handover=True)
    await write(new, b"abc")
    relays = bench.conduit.kind is DatapathKind.RELAY
    if relays:
        await eventually(lambda: bytes_unacknowledged(new) == 0)
    reset_on_close(new)
    new.close()
    await eventually(lambda: bench.owner.legs_ended == [(2, LegEnd.RESET)])
    await write(old, b"0123456789")  # late
    if relays:  # but it comes; and then the mobile has nothing left to repeat
        await eventually(lambda: bench.conduit.state().up_taken == 13)
    taken = bench.conduit.state().up_taken
    again = await bench.attach(3, upstream_from=taken)
    await write(again, b"0123456789abcdef"[taken:])
    assert await read(bench.server, 16) == b"0123456789abcdef"


async def test_the_state_tells_what_is_on_the_way(bench: Bench) -> None:
    await bench.attach(1)
    assert bench.conduit.state() == StreamState(
        up_taken=0, up_fin=None, down_acknowledged=0, down_sent=0, down_available=0, down_fin=None
    )


@pytest.mark.every_family
async def test_megabytes_both_ways_over_many_legs(bench: Bench) -> None:
    chance = random.Random(7)
    size = 8_000_000
    upstream, downstream = chance.randbytes(size), chance.randbytes(size)
    sender = asyncio.create_task(write(bench.server, downstream))
    receiver = asyncio.create_task(read(bench.server, size))
    got, generation = bytearray(), 0
    while len(got) < size or bench.conduit.state().up_taken < size:
        generation += 1
        taken = bench.conduit.state().up_taken
        mobile = await bench.attach(generation, received=len(got), upstream_from=taken)
        await asyncio.gather(
            write(mobile, upstream[taken : taken + 700_000]),
            read_into(got, mobile, min(size, len(got) + 700_000)),
        )
        # All that this leg's kernel has ACKed must be read before the next leg, which begins at D.
        bench.conduit.stop_leg()
        await read_into(got, mobile, bench.conduit.state().down_acknowledged)
    assert hashlib.sha256(got).digest() == hashlib.sha256(downstream).digest()
    await sender
    assert hashlib.sha256(await receiver).digest() == hashlib.sha256(upstream).digest()
    assert bench.owner.bytes_lost == []
