"""A handover, packet by packet: which leg gets what, and what the server hears of two mobile legs."""

from __future__ import annotations

import time

import pytest
from tests.datapath.splice.packet_bench import DROP, ENDS, MOBILE, REDIRECT, SECOND_MOBILE, WRAP, Result, Rig
from tests.datapath.splice.test_packets_options import blocks, padded, sack

from msocks.datapath.splice.layout import NO_FIN, NO_SPLIT, SERVER, Handover, LegState
from msocks.datapath.splice.segments import ACK, FIN, PSH, RST, timestamps

SPLIT, ROOM, A = 9000, 50_000, 5000
SCALE = 128
FIRST_SEQUENCE = 0xFFFFFFF0


@pytest.fixture
def stopped(rig: Rig) -> Rig:
    """The old leg was stopped to hand over, and the new one is known: its reply is still to come."""
    session = rig.session
    new = rig.leg(SECOND_MOBILE, 4)
    new.state, new.begins_in, new.arrived = LegState.HANDSHAKE, A, A
    session.handover = Handover(
        split=NO_SPLIT, up_split=A, room=ROOM, base=FIRST_SEQUENCE, from_leg=MOBILE, to=SECOND_MOBILE
    )
    return rig


@pytest.fixture
def draining(stopped: Rig) -> Rig:
    """The new leg is attached, and of what went over the old one 1000 bytes are not acknowledged in each direction."""
    session = stopped.session
    new = session.legs[SECOND_MOBILE]
    session.handover.split = SPLIT
    new.begins_out = SPLIT
    session.active = SECOND_MOBILE
    new.state = LegState.LIVE
    return stopped


def came_out(result: Result) -> int:
    """The leg that a packet left on."""
    seen = result.seen
    (leg,) = (number for (number, _), (remote, _) in ENDS.items() if remote == seen.destination)
    return leg


def dropped(result: Result, reason: str) -> bool:
    return (result.verdict, result.drops) == (DROP, {reason: 1})


def data(rig: Rig, leg: int, offset: int, acks: int, size: int = 100) -> Result:
    return rig.run(rig.frame(leg, rig.segment(leg, offset, acks, ACK | PSH, payload=bytes(size))))


def ack(rig: Rig, leg: int, acks: int, *, offset: int = A, **fields: object) -> Result:
    return rig.run(rig.frame(leg, rig.segment(leg, offset, acks, **fields)))  # type: ignore[arg-type]


def told(rig: Rig, result: Result) -> tuple[int, int]:
    """What the server hears: the ACK as an offset, and the window in bytes."""
    assert came_out(result) == SERVER
    segment = result.seen.segment
    return (segment.acknowledgment - rig.session.legs[SERVER].in_base) % WRAP, segment.window * SCALE


# -- the split ---------------------------------------------------------------------------------------------------------


def test_the_first_segment_that_is_new_takes_the_split_and_goes_ahead_of_the_reply(stopped: Rig):
    assert came_out(data(stopped, SERVER, 8900, 4500)) == MOBILE
    assert stopped.session.handover.split == NO_SPLIT
    result = data(stopped, SERVER, SPLIT, 4500)
    assert came_out(result) == SECOND_MOBILE
    assert result.seen.segment.sequence == FIRST_SEQUENCE
    assert stopped.session.handover.split == SPLIT
    # Of what went over the old leg more is on the way; the request is all that is acknowledged on the new one.
    assert result.seen.segment.acknowledgment == (stopped.session.legs[SECOND_MOBILE].in_base + A) % WRAP
    result = data(stopped, SERVER, SPLIT + 100, 4500)
    assert (came_out(result), result.seen.segment.sequence) == (SECOND_MOBILE, (FIRST_SEQUENCE + 100) % WRAP)


def test_what_was_reordered_before_the_split_belongs_to_the_old_leg(stopped: Rig):
    assert came_out(data(stopped, SERVER, SPLIT + 100, 4500)) == SECOND_MOBILE
    assert stopped.session.handover.split == SPLIT + 100
    assert came_out(data(stopped, SERVER, SPLIT, 4500)) == MOBILE
    assert came_out(data(stopped, SERVER, SPLIT + 50, 4500)) == MOBILE  # what lies behind comes again


def test_an_implausible_segment_takes_no_split(stopped: Rig):
    assert dropped(data(stopped, SERVER, stopped.session.down.edge + 70_000, 4500), "beyond_window")
    assert stopped.session.handover.split == NO_SPLIT


def test_without_a_new_leg_what_is_new_is_dropped_and_not_noted(stopped: Rig):
    stopped.session.handover.to = 0
    assert dropped(data(stopped, SERVER, SPLIT, 4500), "stopped")
    assert stopped.session.down.sent == SPLIT
    assert came_out(data(stopped, SERVER, 8900, 4500)) == MOBILE


def test_where_nothing_new_has_come_the_end_of_what_was_sent_is_the_split(stopped: Rig):
    stopped.tables.fix_split(stopped.slot)
    assert stopped.session.handover.split == SPLIT
    stopped.session.down.sent += 100
    stopped.tables.fix_split(stopped.slot)
    assert stopped.session.handover.split == SPLIT


def test_until_the_new_leg_is_attached_the_kernel_answers_on_it(stopped: Rig):
    assert ack(stopped, SECOND_MOBILE, SPLIT).verdict == -1


# -- ACKs of the mobile's ----------------------------------------------------------------------------------------------


def test_the_server_hears_the_old_leg_up_to_the_split_and_sees_the_new_ones_window(draining: Rig):
    assert told(draining, ack(draining, MOBILE, 8600, window=3)) == (8600, (SPLIT + ROOM - 8600) // SCALE * SCALE)
    assert draining.session.down.acked == 8600


def test_what_the_new_leg_acknowledges_is_noted_and_told_when_the_old_one_has_brought_all(draining: Rig):
    draining.session.down.sent = draining.session.legs[SERVER].arrived = SPLIT + 3000
    assert dropped(ack(draining, SECOND_MOBILE, SPLIT + 2000, window=1000), "early_ack")
    assert (draining.session.down.acked, draining.session.handover.acked) == (8000, SPLIT + 2000)
    edge = SPLIT + 2000 + 1000 * SCALE
    acknowledged, window = told(draining, ack(draining, MOBILE, SPLIT))
    assert (acknowledged, window) == (SPLIT + 2000, (edge - acknowledged) // SCALE * SCALE)
    assert draining.session.down.acked == SPLIT + 2000
    # From now on the old leg has nothing to say, and the new one speaks for itself.
    assert dropped(ack(draining, MOBILE, SPLIT), "stale_leg")
    assert told(draining, ack(draining, SECOND_MOBILE, SPLIT + 3000))[0] == SPLIT + 3000


def test_the_old_leg_acknowledges_nothing_beyond_the_split(draining: Rig):
    draining.session.down.sent = draining.session.legs[SERVER].arrived = SPLIT + 3000
    assert told(draining, ack(draining, MOBILE, SPLIT + 500))[0] == SPLIT


def test_data_on_the_new_leg_pass_and_say_what_is_known(draining: Rig):
    result = data(draining, SECOND_MOBILE, A, SPLIT + 0)
    assert told(draining, result)[0] == 8000
    assert result.seen.segment.payload == bytes(100)
    assert draining.session.down.acked == 8000


def test_a_block_behind_the_split_is_no_sign_of_a_loss_on_the_old_leg(draining: Rig):
    draining.session.down.sent = draining.session.legs[SERVER].arrived = SPLIT + 3000
    for leg in (MOBILE, SECOND_MOBILE):
        numbers = draining.session.legs[leg]
        options = padded(sack(numbers.out_base, (SPLIT + 100, SPLIT + 200)))
        frame = draining.frame(leg, draining.segment(leg, A - 100, 8600, payload=bytes(50), options=options))
        assert blocks(draining.run(frame).seen.segment.options) == []


# -- the server's segments ---------------------------------------------------------------------------------------------


def test_an_ack_of_the_servers_goes_where_bytes_wait_for_it(draining: Rig):
    draining.session.up.sent = A + 1000
    draining.session.legs[SECOND_MOBILE].arrived = A + 1000
    result = ack(draining, SERVER, 4500, offset=SPLIT + 2000)
    old, new = draining.session.legs[MOBILE], draining.session.legs[SECOND_MOBILE]
    assert came_out(result) == MOBILE
    assert result.seen.segment.acknowledgment == old.in_base + 4500
    assert result.seen.segment.sequence == (old.out_base + SPLIT) % WRAP  # no further than that leg goes
    result = ack(draining, SERVER, A + 1000, offset=SPLIT + 2000)
    assert came_out(result) == SECOND_MOBILE
    assert result.seen.segment.acknowledgment == new.in_base + A + 1000


def test_what_the_server_repeats_goes_over_the_leg_that_it_went_over(draining: Rig):
    draining.session.down.sent = SPLIT + 3000
    assert came_out(data(draining, SERVER, 8500, 4500)) == MOBILE
    assert came_out(data(draining, SERVER, SPLIT - 50, 4500)) == MOBILE
    assert came_out(data(draining, SERVER, SPLIT, 4500)) == SECOND_MOBILE


# -- upstream, and the end of the old leg ------------------------------------------------------------------------------


def test_both_legs_bring_their_part_upstream(draining: Rig):
    for leg, offset in ((SECOND_MOBILE, A), (MOBILE, A - 100)):
        result = data(draining, leg, offset, 8000)
        assert result.seen.segment.sequence == (draining.session.legs[SERVER].out_base + offset) % WRAP
    assert draining.session.up.sent == A + 100
    assert dropped(data(draining, MOBILE, A - 50, 8000), "stale_leg")  # the mobile has nothing to say beyond


def test_the_fin_of_the_old_leg_is_not_the_streams(draining: Rig):
    result = ack(draining, MOBILE, SPLIT, flags=ACK | FIN)
    assert told(draining, result)[0] == SPLIT
    assert result.seen.segment.flags == ACK
    assert result.seen.tcp_checksum
    assert (draining.session.up.fin, draining.session.up.sent) == (NO_FIN, A)


def test_what_comes_from_behind_the_fin_of_the_old_leg_does_not_hide_the_streams(draining: Rig):
    server = draining.session.legs[SERVER]
    ack(draining, MOBILE, 8600, offset=A, flags=ACK | FIN)
    result = ack(draining, MOBILE, 8700, offset=A + 1)
    assert told(draining, result)[0] == 8700
    assert result.seen.segment.sequence == (server.out_base + A) % WRAP
    assert draining.session.up.sent == draining.session.legs[MOBILE].arrived == A
    result = ack(draining, SECOND_MOBILE, SPLIT, offset=A, flags=ACK | FIN)
    assert result.seen.segment.flags & FIN
    assert (draining.session.up.fin, draining.session.up.sent) == (A, A + 1)
    # The old leg goes on with what it acknowledges, from where the server expects it.
    ack(draining, SERVER, A + 1, offset=SPLIT)
    result = ack(draining, MOBILE, 8800, offset=A + 1)
    assert (told(draining, result)[0], result.seen.segment.sequence) == (8800, (server.out_base + A + 1) % WRAP)


def test_the_rst_of_the_old_leg_ends_nothing(draining: Rig):
    assert dropped(ack(draining, MOBILE, SPLIT, flags=ACK | RST), "reset_detaches")
    assert draining.session.legs[MOBILE].state == LegState.LIVE
    assert draining.session.flags == 0


def test_the_clock_that_the_server_sees_never_goes_back_between_two_legs(draining: Rig):
    session = draining.session
    seen: list[int] = []
    for leg, tsval in ((MOBILE, 1000), (SECOND_MOBILE, 900), (MOBILE, 990), (SECOND_MOBILE, 1100)):
        session.legs[leg].shift_in = 0
        session.legs[SERVER].ts_out = max(seen, default=0)
        result = ack(draining, leg, 8600, offset=A - 100, payload=bytes(10), options=timestamps(tsval, 0))
        assert result.verdict == REDIRECT
        seen.append(int.from_bytes(result.seen.segment.options[4:8], "big"))
    assert seen == [1000, 1000, 1000, 1100]


# -- the window afterwards ---------------------------------------------------------------------------------------------


def test_the_window_follows_what_the_new_path_carries(draining: Rig):
    session, handover = draining.session, draining.session.handover
    session.down.sent = session.legs[SERVER].arrived = SPLIT + 100_000
    session.down.acked = SPLIT
    handover.from_leg, handover.allowance, handover.since = 0, 10_000, time.monotonic_ns()
    # From end to end it takes 100 ms at the least.
    handover.least_ns, session.legs[SERVER].round_trip_ms = 40_000_000, 60
    assert told(draining, ack(draining, SECOND_MOBILE, SPLIT + 10, window=5000))[1] == 10_000 // SCALE * SCALE
    # 40,000 bytes in four times the least round trip: the path holds 10,000 without a queue.
    handover.timed_from, handover.timed_end = SPLIT, SPLIT + 40_000
    handover.timed_at = time.monotonic_ns() - 400_000_000
    ack(draining, SECOND_MOBILE, SPLIT + 40_000, window=5000)
    assert (handover.timed_end, handover.least_ns) == (0, 40_000_000)
    assert 12_000 < handover.allowance <= 15_000
    # A segment that leaves begins the next measurement. Its ACK tells the leg's own round trip, not the whole.
    data(draining, SERVER, SPLIT + 90_000, 5000)
    assert (handover.timed_end, handover.timed_from) == (SPLIT + 90_100, SPLIT + 40_000)
    handover.timed_at = time.monotonic_ns() - 20_000_000
    ack(draining, SECOND_MOBILE, SPLIT + 90_100, window=5000)
    assert 20_000_000 < handover.least_ns < 40_000_000
    assert handover.timed_end == SPLIT + 90_100
