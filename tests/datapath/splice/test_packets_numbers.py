"""Addresses, sequence numbers, acknowledgments and windows on their way through the splice."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests.datapath.splice.packet_bench import (
    ENDS,
    FAMILIES,
    MOBILE,
    NEXT_HOPS,
    OWN,
    SECOND_MOBILE,
    WRAP,
    Rig,
    Segment,
    read,
)
from tests.datapath.splice.packet_model import check, check_frame, refused

from msocks.datapath.splice.layout import SERVER, DropReason, LegFlag
from msocks.datapath.splice.segments import ACK, FIN, PSH, RST, timestamps

BASES = [0, 1, 0x7FFFFFFF, 0x80000000, WRAP - 4500, WRAP - 1]
NEAR_THE_END = [0, 4500, WRAP - 4500, WRAP, 3 * WRAP - 1, 1 << 45]


@pytest.mark.parametrize(("mobile", "server"), FAMILIES)
@pytest.mark.parametrize("leg", [MOBILE, SERVER])
def test_a_segment_leaves_as_one_of_the_other_leg(bare_rig: Rig, mobile: int, server: int, leg: int):
    rig = bare_rig
    rig.splice(mobile, server)
    other, family = (SERVER, server) if leg == MOBILE else (MOBILE, mobile)
    at, acks = (5000, 8500) if leg == MOBILE else (9000, 4500)
    sent = rig.segment(leg, at, acks, ACK | PSH, payload=b"an odd number of bytes.", service=0xB8, reserved=5, urgent=7)
    seen = check(rig, leg, sent).seen
    remote, local = ENDS[other, family]
    assert (seen.source, seen.destination) == (local, remote)
    assert (seen.destination_mac, seen.source_mac) == (NEXT_HOPS[other], OWN[other])
    leaves = rig.session.legs[other]
    assert seen.segment == replace(
        sent, sequence=leaves.out_base + at, acknowledgment=leaves.in_base + acks, hop_limit=63
    )
    assert seen.ip_checksum
    assert seen.tcp_checksum


@pytest.mark.parametrize(("mobile", "server"), FAMILIES)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 1440])
def test_payloads_of_every_parity(bare_rig: Rig, mobile: int, server: int, size: int):
    bare_rig.splice(mobile, server)
    payload = bytes(index * 7 & 0xFF for index in range(size))
    assert check(bare_rig, MOBILE, bare_rig.segment(MOBILE, 5000, 8500, payload=payload)).seen.tcp_checksum


@pytest.mark.parametrize("shift", NEAR_THE_END)
@pytest.mark.parametrize("base", BASES)
def test_numbers_wrap_and_offsets_go_beyond_4_gigabytes(rig: Rig, base: int, shift: int):
    session = rig.session
    for number, leg in enumerate((session.legs[SERVER], session.legs[MOBILE])):
        leg.in_base, leg.out_base = (base + 77 * number) % WRAP, (base + 1234567 * number) % WRAP
        leg.arrived += shift
    for stream in (session.up, session.down):
        stream.sent, stream.acked, stream.edge = stream.sent + shift, stream.acked + shift, stream.edge + shift
    session.mobile_edge += shift
    for step in range(4):  # across the wrap of the segment's own numbers
        at = shift + 5000 + 400 * step
        check(rig, MOBILE, rig.segment(MOBILE, at, shift + 8200 + 100 * step, payload=bytes(400)))
        assert (session.up.sent, session.legs[MOBILE].arrived) == (at + 400, at + 400)
        assert session.down.acked == shift + 8200 + 100 * step
        check(rig, SERVER, rig.segment(SERVER, shift + 9000 + 10 * step, at + 400, payload=bytes(10)))
        assert session.up.acked == at + 400


def test_a_retransmission_from_before_offset_0_keeps_its_place(rig: Rig):
    session = rig.session
    session.up.acked, session.up.sent = 10, 20
    seen = check(rig, MOBILE, rig.segment(MOBILE, -50, 8500, payload=bytes(30))).seen
    assert seen.segment.sequence == (session.legs[SERVER].out_base - 50) % WRAP
    assert session.up.sent == 20


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_scale", range(15))
@pytest.mark.parametrize("in_scale", range(15))
def test_windows_of_every_scale(rig: Rig, in_scale: int, out_scale: int):
    session = rig.session
    session.legs[MOBILE].in_scale, session.legs[SERVER].out_scale = in_scale, out_scale
    for window in (0, 1, 255, 0x7FFF, 0xFFFF):
        said = 8500
        seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, said, window=window)).seen
        offered, meant = seen.segment.window << out_scale, window << in_scale
        assert offered <= meant
        if seen.segment.window < 0xFFFF:
            assert meant - offered < 1 << out_scale
        else:
            assert meant >= offered
        assert session.down.edge >= said + meant


def test_a_window_too_wide_for_the_other_leg_is_capped(rig: Rig):
    session = rig.session
    session.legs[MOBILE].in_scale, session.legs[SERVER].out_scale = 14, 0
    assert check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, window=0xFFFF)).seen.segment.window == 0xFFFF
    assert session.down.widest == 0xFFFF << 14


def test_a_window_that_shrinks_moves_no_edge(rig: Rig):
    session = rig.session
    edge = session.down.edge
    assert check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, window=3)).seen.segment.window == 3
    assert (session.down.edge, session.down.widest) == (edge, 60000)


# -- toward a leg that began later -------------------------------------------------------------------------------------


@pytest.fixture
def moved(rig: Rig) -> Rig:
    """The mobile has reconnected: its second leg begins at A = 4000 upstream and D = 8000 downstream."""
    session = rig.session
    leg = rig.leg(SECOND_MOBILE, 4)
    session.active = SECOND_MOBILE
    leg.begins_in = leg.arrived = 4000
    leg.begins_out = 8000
    return rig


def test_the_server_acknowledges_what_the_new_leg_has_not_sent(moved: Rig):
    """It came by the leg before: the mobile would answer an ACK of what it has not sent, and take nothing from it."""
    seen = check(moved, SERVER, moved.segment(SERVER, 9000, 5000, window=100)).seen
    leg = moved.session.legs[SECOND_MOBILE]
    assert seen.segment.acknowledgment == leg.in_base + 4000
    # The right edge stays: 1000 bytes further away than the field says on the server's leg.
    assert seen.segment.window == (5000 + (100 << 7) - 4000) >> 7
    assert moved.session.up.acked == 5000


def test_it_is_acknowledged_once_the_mobile_has_sent_it_again(moved: Rig):
    leg = moved.session.legs[SECOND_MOBILE]
    check(moved, SECOND_MOBILE, moved.segment(SECOND_MOBILE, 4000, 8000, payload=bytes(600)))
    assert check(moved, SERVER, moved.segment(SERVER, 9000, 5000)).seen.segment.acknowledgment == leg.in_base + 4600
    check(moved, SECOND_MOBILE, moved.segment(SECOND_MOBILE, 4600, 8000, payload=bytes(600)))
    assert check(moved, SERVER, moved.segment(SERVER, 9000, 5000)).seen.segment.acknowledgment == leg.in_base + 5000


def test_what_the_mobile_acknowledges_of_the_reply_is_not_the_servers_affair(moved: Rig):
    session = moved.session
    seen = check(moved, SECOND_MOBILE, moved.segment(SECOND_MOBILE, 4000, 7990, window=100)).seen
    assert seen.segment.acknowledgment == session.legs[SERVER].in_base + 8000
    assert seen.segment.window << 7 <= 7990 + (100 << 7) - 8000
    assert not session.legs[SECOND_MOBILE].flags & LegFlag.REPLY_ACKED
    assert session.down.acked == 8000
    check(moved, SECOND_MOBILE, moved.segment(SECOND_MOBILE, 4000, 8000))
    assert session.legs[SECOND_MOBILE].flags & LegFlag.REPLY_ACKED


def test_a_reply_that_hides_the_whole_window_closes_it(moved: Rig):
    seen = check(moved, SECOND_MOBILE, moved.segment(SECOND_MOBILE, 4000, 7900, window=0)).seen
    assert seen.segment.window == 0


def test_nothing_is_acknowledged_that_the_server_has_not_sent(rig: Rig):
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 9400)).seen
    assert seen.segment.acknowledgment == rig.session.legs[SERVER].in_base + 9000
    assert rig.session.down.acked == 9000


def test_an_ack_that_the_server_cannot_mean_moves_nothing(rig: Rig):
    check(rig, SERVER, rig.segment(SERVER, 9000, 5400))
    assert rig.session.up.acked == 4000


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1, 0x7FFFFFFF, 0x80000000, WRAP - 1])
@pytest.mark.parametrize("tsval", [0, 1, 0x7FFFFFFF, 0x80000000, WRAP - 1])
def test_timestamps_wrap(rig: Rig, tsval: int, shift: int):
    session = rig.session
    mobile, server = session.legs[MOBILE], session.legs[SERVER]
    mobile.shift_in, mobile.shift_out = shift, (shift * 3 + 5) % WRAP
    mobile.ts_in = server.ts_in = (tsval - 1) % WRAP
    mobile.ts_out, server.ts_out = (server.ts_in + mobile.shift_out) % WRAP, (mobile.ts_in + shift) % WRAP
    echo = (tsval - 1 + mobile.shift_out) % WRAP
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=timestamps(tsval, echo))).seen
    assert seen.segment.options == timestamps((tsval + shift) % WRAP, (tsval - 1) % WRAP)
    assert (mobile.ts_in, server.ts_out) == (tsval, (tsval + shift) % WRAP)
    seen = check(rig, SERVER, rig.segment(SERVER, 9000, 5000, options=timestamps(tsval, server.ts_out))).seen
    assert seen.segment.options == timestamps((tsval + mobile.shift_out) % WRAP, tsval)


def test_no_tsval_is_echoed_to_the_server_that_it_has_not_sent(rig: Rig):
    session = rig.session
    session.legs[SERVER].ts_in = 1000
    echo = (1001 + session.legs[MOBILE].shift_out) % WRAP
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=timestamps(7, echo))).seen
    assert seen.segment.options[8:] == (1000).to_bytes(4, "big")


def ticks(earlier: int, later: int) -> int:
    return (later - earlier) % WRAP


def test_the_first_segments_of_a_leg_fix_its_clock_by_the_time_that_has_passed(rig: Rig):
    session = rig.session
    mobile, server = session.legs[MOBILE], session.legs[SERVER]
    mobile.flags &= ~(LegFlag.SHIFT_IN_SET | LegFlag.SHIFT_OUT_SET)
    mobile.round_trip_ms = 40
    mobile.begins_out = 8000  # a later leg; the first one echoes what the server's handshake has said
    # What this host's kernel has said last, 3 s ago.
    for leg in (mobile, server):
        leg.ts_in_at = leg.ts_out_at = session.last_ns - 3_000_000_000
    options = timestamps(0xFFFFFFF0, 12345)
    result = rig.run(rig.frame(MOBILE, rig.segment(MOBILE, 5000, 8500, options=options)))
    tsval, tsecr = (int.from_bytes(result.seen.segment.options[at : at + 4], "big") for at in (4, 8))
    assert result.seen.tcp_checksum
    assert 2980 <= ticks(0x0B000000, tsval) < 3500  # goes on where the leg was; the clock lags by 10 ms at the most
    assert 2940 <= ticks(0x0A000000, tsecr) < 3460  # what the server's clock shows, less a round trip
    assert mobile.flags & LegFlag.SHIFT_IN_SET
    assert not mobile.flags & LegFlag.SHIFT_OUT_SET
    frame = rig.frame(SERVER, rig.segment(SERVER, 9000, 5000, options=timestamps(0x0A000000 + 3500, tsval)))
    result = rig.run(frame)
    tsval, tsecr = (int.from_bytes(result.seen.segment.options[at : at + 4], "big") for at in (4, 8))
    assert 2980 <= ticks(0x16000000, tsval) < 3500
    assert tsecr == 0xFFFFFFF0  # the mobile's own
    assert mobile.flags & LegFlag.SHIFT_OUT_SET


def test_a_late_segment_of_the_last_leg_does_not_make_the_next_one_s_clock_lag(rig: Rig):
    session = rig.session
    mobile, server = session.legs[MOBILE], session.legs[SERVER]
    # The leg before this one said 1000 at an instant 500 ms ago, and 1100 just now: 400 ms late.
    server.ts_out, server.ts_out_at = 1000, time.monotonic_ns() - 500_000_000
    mobile.shift_in = 0
    rig.run(rig.frame(MOBILE, rig.segment(MOBILE, 5000, 8500, options=timestamps(1100, 12345))))
    assert server.ts_out == 1100
    mobile.flags &= ~LegFlag.SHIFT_IN_SET
    result = rig.run(rig.frame(MOBILE, rig.segment(MOBILE, 5000, 8500, options=timestamps(7, 12345))))
    tsval = int.from_bytes(result.seen.segment.options[4:8], "big")
    assert 1490 <= tsval < 1900
    # What was sent 600 ms ago, over the other leg, is not echoed as sent 200 ms ago.
    result = rig.run(rig.frame(SERVER, rig.segment(SERVER, 9000, 5000, options=timestamps(0x0A000000, 900))))
    tsecr = int.from_bytes(result.seen.segment.options[8:12], "big")
    assert ticks(tsecr, 7) >= 590


def test_a_quick_segment_of_long_ago_counts_no_more(rig: Rig):
    server = rig.session.legs[SERVER]
    rig.session.legs[MOBILE].shift_in = 0
    # Two minutes ago the way was 100 ms shorter.
    now = time.monotonic_ns()
    server.ts_out, server.ts_out_at = 1000, now - 120_100_000_000
    rig.run(rig.frame(MOBILE, rig.segment(MOBILE, 5000, 8500, options=timestamps(121_000, 12345))))
    assert now - 20_000_000 <= server.ts_out_at <= time.monotonic_ns()  # the clock lags by 10 ms at the most


# -- links -------------------------------------------------------------------------------------------------------------


def test_a_padded_frame_keeps_its_padding_and_is_not_taken_for_data(bare_rig: Rig):
    for mobile, server in FAMILIES:
        bare_rig.splice(mobile, server)
        data = bare_rig.frame(MOBILE, bare_rig.segment(MOBILE, 5000, 8500)) + b"\x55" * 6
        seen = check_frame(bare_rig, MOBILE, data).seen
        assert (seen.segment.payload, seen.padding) == (b"", b"\x55" * 6)
        assert bare_rig.session.up.sent == 5000


def test_the_fragment_field_and_the_flow_label_stay_within_a_family(bare_rig: Rig):
    bare_rig.splice()
    data = bytearray(bare_rig.frame(MOBILE, bare_rig.segment(MOBILE, 5000, 8500)))
    data[20:22] = b"\0\0"  # without DF
    data[24:26] = (int.from_bytes(data[24:26], "big") + 0x4000).to_bytes(2, "big")
    assert check_frame(bare_rig, MOBILE, bytes(data)).seen.label == 0x12340000
    bare_rig.splice(6, 6)
    data = bytearray(bare_rig.frame(MOBILE, bare_rig.segment(MOBILE, 5000, 8500, service=0xFF)))
    data[15] |= 0x0A
    data[16:18] = b"\xbc\xde"
    assert check_frame(bare_rig, MOBILE, bytes(data)).seen.label == 0xABCDE


def test_to_an_interface_without_addresses_of_its_own_the_frame_keeps_those_it_had(rig: Rig):
    rig.session.legs[SERVER].path.ethernet = 0
    check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500))


def test_what_another_host_is_to_get_is_not_ours(rig: Rig):
    data = bytearray(rig.frame(MOBILE, rig.segment(MOBILE, 5000, 8500)))
    data[:6] = b"\x02\0\0\0\0\x77"
    result = rig.run(bytes(data))
    assert (result.verdict, result.frame, result.drops) == (-1, bytes(data), {})


def test_a_flow_of_nobody_is_the_kernels(rig: Rig):
    data = bytearray(rig.frame(MOBILE, rig.segment(MOBILE, 5000, 8500)))
    data[35] ^= 1
    result = rig.run(bytes(data))
    assert (result.verdict, result.frame, result.drops) == (-1, bytes(data), {})


# -- checksums ---------------------------------------------------------------------------------------------------------


def damaged(rig: Rig, leg: int, segment: Segment, at: int, bits: int) -> None:
    """A segment of which one byte is not what was sent changes nothing that is known of the session."""
    data = bytearray(rig.frame(leg, segment))
    data[at] ^= bits
    assert not read(bytes(data)).tcp_checksum
    before = rig.snapshot()
    assert check_frame(rig, leg, bytes(data)).drops == {"checksum": 1}
    (before.down if leg == SERVER else before.up).dropped += 1
    assert bytes(rig.session) == bytes(before)


@pytest.mark.parametrize(("mobile", "server"), FAMILIES)
@pytest.mark.parametrize("layout", ["plain", "timestamps", "general"])
def test_a_wrong_checksum_is_never_made_right(bare_rig: Rig, mobile: int, server: int, layout: str):
    options = {"plain": b"", "timestamps": timestamps(9, 9), "general": b"\x01" * 4 + timestamps(9, 9)}[layout]
    bare_rig.splice(mobile, server)
    headers = 34 if mobile == 4 else 54
    segment = bare_rig.segment(MOBILE, 5000, 8500, options=options, payload=b"damaged on its way")
    for at, bits in ((headers + 17, 0x01), (headers + 16, 0x01), (headers + 16, 0x80), (-3, 0x10)):
        damaged(bare_rig, MOBILE, segment, at, bits)


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, RST | ACK])
@pytest.mark.parametrize("leg", [MOBILE, SERVER])
def test_a_damaged_segment_acknowledges_and_ends_nothing(rig: Rig, leg: int, flags: int):
    at, acks = (5000, 8600) if leg == MOBILE else (9000, 4600)
    damaged(rig, leg, rig.segment(leg, at, acks, flags), 34 + 14, 0x40)  # the window


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 479, 480, 491, 492, 493, 511, 512, 513, 1004, 1005, 1400])
def test_the_sum_is_made_over_the_whole_segment_and_no_more(bare_rig: Rig, family: int, size: int):
    bare_rig.splice(family, 4)
    payload = bytes(1 + index % 255 for index in range(size))
    segment = bare_rig.segment(MOBILE, 5000, 8500, payload=payload)
    data = bare_rig.frame(MOBILE, segment) + b"\xff" * 9  # Ethernet's padding
    assert check_frame(bare_rig, MOBILE, data).drops == {}
    if size:
        damaged(bare_rig, MOBILE, segment, -1, 0x01)
        damaged(bare_rig, MOBILE, segment, (34 if family == 4 else 54) + 20, 0x80)


def test_a_damaged_ipv4_header_goes_no_further(bare_rig: Rig):
    for server in (4, 6):
        bare_rig.splice(4, server)
        data = bytearray(bare_rig.frame(MOBILE, bare_rig.segment(MOBILE, 5000, 8500)))
        data[25] ^= 1
        refused(bare_rig, bytes(data), DropReason.MALFORMED)
