"""TCP options on their way through the splice: every layout, and what the other leg has not negotiated."""

from __future__ import annotations

import struct

import pytest
from tests.datapath.splice.packet_bench import MOBILE, SECOND_MOBILE, Rig
from tests.datapath.splice.packet_model import check

from msocks.datapath.splice.layout import SERVER, LegFlag
from msocks.datapath.splice.segments import ACK, SYN, sack_blocks, timestamps

NOP, EOL = b"\x01", b"\0"
STAMPS = timestamps(1000, 2000)[2:]  # without the NOPs
UNKNOWN = b"\xfd\x06\xde\xad\xbe\xef"
FAST_OPEN = b"\x22\x0a" + b"cookie!!"
LAYOUTS = {
    "none": b"",
    "two NOPs first": NOP * 2 + STAMPS,
    "two NOPs last": STAMPS + NOP * 2,
    "odd offset": NOP + STAMPS + NOP,
    "odd offset, late": NOP * 5 + STAMPS + NOP,
    "end": STAMPS + EOL * 2,
    "end at once": EOL + STAMPS + EOL,
    "NOPs alone": NOP * 12,
    "NOPs to the brim": NOP * 40,
    "unknown first": UNKNOWN + STAMPS,
    "unknown last": STAMPS + UNKNOWN,
    "unknown of odd length": b"\xfd\x03\xaa" + STAMPS + b"\xfd\x03\x08",
    "fast open": FAST_OPEN + STAMPS,
    "twice": STAMPS + timestamps(77, 88)[2:] + STAMPS + NOP * 2,
    "looks like timestamps": b"\xfd\x0c" + STAMPS,
    "MSS": b"\x02\x04\x05\xb4" + NOP * 2 + STAMPS,
    "all of a SYN": b"\x02\x04\x05\xb4\x04\x02" + STAMPS + b"\x01\x03\x03\x07",
    "signature": b"\x13\x12" + bytes(range(16)) + STAMPS,
}
MALFORMED = {
    "length 0": b"\xfd\0" + STAMPS,
    "length 1": b"\xfd\x01" + STAMPS,
    "length beyond the end": b"\xfd\xff" + STAMPS,
    "length beyond by 1": NOP * 2 + b"\x08\x0b" + bytes(8),
    "kind without length": NOP * 3 + b"\x08",
    "timestamps cut off": NOP * 4 + b"\x08\x0a\0\0",
    "timestamps too short": b"\x08\x09" + bytes(7) + NOP * 3,
    "timestamps too long": b"\x08\x0c" + bytes(10),
    "timestamps without value": b"\x08\x02" + NOP * 2,
    "SACK without block": b"\x05\x02" + NOP * 2,
    "SACK of half a block": b"\x05\x06" + bytes(4) + NOP * 2,
    "SACK of a block and a half": b"\x05\x0e" + bytes(12) + NOP * 2,
    "SACK of 4 blocks, cut off": NOP * 8 + b"\x05\x22" + bytes(30),
    "behind it, whatever": b"\x08\0" + STAMPS + sack_blocks([(1, 2)]),
}


@pytest.mark.parametrize("leg", [MOBILE, SERVER])
@pytest.mark.parametrize("layout", [*LAYOUTS, *MALFORMED])
def test_every_layout(rig: Rig, layout: str, leg: int):
    options = (LAYOUTS | MALFORMED)[layout]
    at, acks = (5000, 8500) if leg == MOBILE else (9000, 4500)
    for payload in (b"", b"payload"):
        seen = check(rig, leg, rig.segment(leg, at, acks, options=options, payload=payload)).seen
        assert len(seen.segment.options) == len(options)
        if layout in MALFORMED:
            assert seen.segment.options == options


@pytest.mark.parametrize("layout", LAYOUTS)
def test_timestamps_are_taken_out_where_the_other_leg_has_none(rig: Rig, layout: str):
    options = LAYOUTS[layout]
    rig.session.legs[SERVER].flags &= ~LegFlag.TIMESTAMPS
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=options)).seen
    stays = layout in ("looks like timestamps", "end at once")
    expected = options if stays else options.replace(STAMPS, NOP * 10).replace(timestamps(77, 88)[2:], NOP * 10)
    assert seen.segment.options == expected
    assert rig.session.legs[SERVER].ts_out == 0x0B000000


def test_values_and_not_only_their_places(rig: Rig):
    for options in (LAYOUTS["two NOPs first"], LAYOUTS["odd offset"]):
        seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=options)).seen
        mapped = struct.pack("!II", 1000 + 0x01000000, (2000 - 0x02000000) % 2**32)
        assert seen.segment.options == options.replace(STAMPS[2:], mapped)


# -- SACK --------------------------------------------------------------------------------------------------------------


def blocks(options: bytes) -> list[tuple[int, int]]:
    """Of the one SACK option that there is."""
    if options == NOP * len(options):
        return []
    at = next(index for index in range(len(options)) if options[index] == 5 and options[index + 1] % 8 == 2)
    return list(struct.iter_unpack("!II", options[at + 2 : at + options[at + 1]]))


def sack(base: int, *edges: tuple[int, int]) -> bytes:
    """By offsets; without padding."""
    return sack_blocks([((base + left) % 2**32, (base + right) % 2**32) for left, right in edges])[2:]


def padded(options: bytes, *, nops: int = 0) -> bytes:
    options = NOP * nops + options
    return options + NOP * (-len(options) % 4)


BLOCKS = [(8600, 8650), (8700, 8750), (8800, 8850), (8900, 9000)]


@pytest.mark.parametrize("nops", range(4))
@pytest.mark.parametrize("stamps", ["without", "before", "behind"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_blocks_name_the_same_bytes_on_the_other_leg(rig: Rig, count: int, stamps: str, nops: int):
    said = sack(rig.session.legs[MOBILE].out_base, *BLOCKS[:count])
    said = {"without": said, "before": STAMPS + said, "behind": said + STAMPS}[stamps]
    options = padded(said, nops=nops)
    if len(options) > 40:  # four blocks and timestamps have no room together
        assert count + (stamps != "without") + nops > 3
        return
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=options)).seen
    base = rig.session.legs[SERVER].in_base
    assert blocks(seen.segment.options) == [(base + left, base + right) for left, right in BLOCKS[:count]]


@pytest.mark.parametrize("stamps", [b"", STAMPS])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_blocks_are_taken_out_where_the_other_leg_has_none(rig: Rig, count: int, stamps: bytes):
    rig.session.legs[SERVER].flags &= ~LegFlag.SACK
    options = padded(stamps + sack(rig.session.legs[MOBILE].out_base, *BLOCKS[:count]))
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=options)).seen
    assert seen.segment.options[len(stamps) :] == NOP * (len(options) - len(stamps))


def test_four_blocks_are_taken_out(rig: Rig):
    rig.session.legs[SERVER].flags &= ~LegFlag.SACK
    options = padded(sack(rig.session.legs[MOBILE].out_base, *BLOCKS))
    assert check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=options)).seen.segment.options == NOP * 36


def test_both_are_taken_out(rig: Rig):
    rig.session.legs[SERVER].flags = 0
    options = padded(STAMPS + UNKNOWN + sack(rig.session.legs[MOBILE].out_base, *BLOCKS[:2]))
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=options)).seen
    assert seen.segment.options == NOP * 10 + UNKNOWN + NOP * 20


@pytest.mark.parametrize("base", [0, 2**32 - 8600, 2**32 - 8601, 2**31])
def test_blocks_across_the_wrap(rig: Rig, base: int):
    legs = rig.session.legs
    legs[MOBILE].out_base, legs[SERVER].in_base = base, (base * 3 + 5) % 2**32
    options = padded(sack(base, *BLOCKS))
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, options=options)).seen
    assert seen.segment.options == padded(sack(legs[SERVER].in_base, *BLOCKS))


def said_by_mobile(rig: Rig, acks: int, *edges: tuple[int, int]) -> list[tuple[int, int]]:
    """What becomes of blocks, in offsets."""
    options = padded(sack(rig.session.legs[MOBILE].out_base, *edges))
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, acks, options=options)).seen
    base = rig.session.legs[SERVER].in_base
    assert len(seen.segment.options) == len(options)
    return [(left - base, right - base) for left, right in blocks(seen.segment.options)]


def test_a_block_below_the_ack_reports_a_duplicate_and_passes(rig: Rig):
    """RFC 2883: the first block, below the cumulative ACK or inside the second one."""
    assert said_by_mobile(rig, 8500, (8300, 8400)) == [(8300, 8400)]
    assert said_by_mobile(rig, 8500, (8400, 8500), (8600, 8700)) == [(8400, 8500), (8600, 8700)]
    assert said_by_mobile(rig, 8500, (8620, 8640), (8600, 8700)) == [(8620, 8640), (8600, 8700)]


def test_a_duplicate_of_another_leg_is_nobodys(rig: Rig):
    rig.session.legs[MOBILE].begins_out = 8350
    assert said_by_mobile(rig, 8500, (8349, 8400)) == []
    assert said_by_mobile(rig, 8500, (8350, 8400)) == [(8350, 8400)]


@pytest.mark.parametrize("gigabytes", [1, 2, 3, 4, 5, 7, 100])
def test_a_duplicate_is_told_however_much_the_leg_has_carried(rig: Rig, gigabytes: int):
    down, shift = rig.session.down, gigabytes << 30
    down.sent, down.acked, down.edge = down.sent + shift, down.acked + shift, down.edge + shift
    rig.session.mobile_edge = down.edge
    rig.session.legs[SERVER].arrived += shift
    mobile, server = (rig.session.legs[leg] for leg in (MOBILE, SERVER))
    options = padded(sack(mobile.out_base + shift, (8300, 8400)))
    seen = check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500 + shift, options=options)).seen
    assert seen.segment.options == padded(sack(server.in_base + shift, (8300, 8400)))


def test_a_block_never_goes_beyond_what_was_sent_nor_begins_at_the_ack_or_below(rig: Rig):
    assert said_by_mobile(rig, 8500, (8900, 9001)) == [(8900, 9000)]
    assert said_by_mobile(rig, 8500, (9000, 9100)) == []
    # Nobody has received what the ACK says is missing.
    assert said_by_mobile(rig, 8500, (8400, 8600)) == []
    assert said_by_mobile(rig, 8500, (8500, 8600)) == []


def test_blocks_that_are_left_out_do_not_read_as_the_report_of_a_duplicate(rig: Rig):
    """A first block inside the second one does (RFC 2883 section 4.1.1): two empty ones, or one before another."""
    assert said_by_mobile(rig, 8500, (9000, 9100), (9200, 9300)) == []
    assert said_by_mobile(rig, 8500, (9000, 9100), (8600, 8700)) == [(8600, 8700)]
    assert said_by_mobile(rig, 8500, (8600, 8700), (9000, 9100), (8800, 8900), (9200, 9300)) == [
        (8600, 8700),
        (8800, 8900),
    ]


def test_what_the_server_has_of_an_earlier_leg_is_not_told_on_the_next(rig: Rig):
    """It came out of order by the leg before; the mobile sends it again in any case, on the new one."""
    session = rig.session
    leg = rig.leg(SECOND_MOBILE, 4)
    session.active, leg.begins_in, leg.arrived, leg.begins_out = SECOND_MOBILE, 4000, 4000, 8000
    base = session.legs[SERVER].out_base
    options = padded(sack(base, (4600, 4800)))
    seen = check(rig, SERVER, rig.segment(SERVER, 9000, 4000, options=options)).seen
    assert blocks(seen.segment.options) == []
    check(rig, SECOND_MOBILE, rig.segment(SECOND_MOBILE, 4000, 8000, payload=bytes(700)))
    seen = check(rig, SERVER, rig.segment(SERVER, 9000, 4000, options=options)).seen
    assert blocks(seen.segment.options) == [(leg.in_base + 4600, leg.in_base + 4700)]


# -- handshakes that come late -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
def test_a_syn_of_an_established_session_keeps_what_it_negotiates(rig: Rig, flags: int):
    options = b"\x02\x04\x05\xb4\x04\x02" + STAMPS + b"\x01\x03\x03\x07"
    seen = check(rig, MOBILE, rig.segment(MOBILE, 4999, 8500, flags, options=options)).seen
    assert seen.segment.options[:6] == options[:6]
    assert seen.segment.options[16:] == options[16:]
    assert seen.segment.flags == flags
