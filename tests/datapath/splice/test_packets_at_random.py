"""Random sessions, random segments, and random damage (Hypothesis)."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace

from hypothesis import event, given, settings
from hypothesis import strategies as st
from tests.datapath.splice.packet_bench import (
    DROP,
    FAMILIES,
    MOBILE,
    NEXT,
    SECOND_MOBILE,
    Rig,
    Segment,
    read,
)
from tests.datapath.splice.packet_model import check, timeless

from msocks.datapath.splice.layout import NO_FIN, SERVER, DropReason, LegFlag, SessionFlag, SessionState
from msocks.datapath.splice.libbpf import BpfError
from msocks.datapath.splice.segments import ACK, FIN, PSH, RST, SYN

WORD = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
FLAGS = st.sampled_from([ACK] * 10 + [ACK | PSH, ACK | PSH, FIN | ACK, SYN, SYN | ACK, RST, RST | ACK, 0, FIN])
OFFSET = st.integers(0, 1 << 20) | st.integers(0, 1 << 48) | st.sampled_from([0, 2**31 - 5, 2**32 - 5, 3 << 31])
NEAR = st.integers(-3000, 70000) | st.integers(-200, 200) | st.integers(-(2**31), 2**31 - 1)
IS = st.booleans()


@st.composite
def sessions(draw: st.DrawFn, rig: Rig) -> None:
    """Put one on the bench whose marks are in an order that they can have come to."""
    session = rig.splice(*draw(st.sampled_from(FAMILIES)))
    moved = draw(IS)
    if moved:
        rig.leg(SECOND_MOBILE, draw(st.sampled_from([4, 6])))
        session.active = SECOND_MOBILE
    mobile, server = session.legs[session.active], session.legs[SERVER]
    for stream in (session.up, session.down):
        stream.acked = draw(OFFSET)
        stream.sent = stream.acked + draw(st.integers(0, 60000))
        stream.widest = draw(st.integers(0, 1 << 20))
        stream.edge = stream.acked + draw(st.integers(0, 1 << 20))
        stream.fin = draw(st.sampled_from([NO_FIN, NO_FIN, NO_FIN, stream.sent]))
        stream.packets = draw(st.integers(0, 2))
    up, down = session.up, session.down
    session.mobile_edge = down.edge - draw(st.integers(0, down.edge - down.acked))  # of a leg that offers less
    server.arrived = down.sent
    if moved:
        mobile.begins_in = draw(st.integers(max(0, up.acked - 1000), up.acked))
        mobile.arrived = draw(st.integers(mobile.begins_in, up.sent))
        mobile.begins_out = draw(st.integers(max(0, down.acked - 1000), down.acked))
    else:
        mobile.arrived = up.sent
    for leg in (mobile, server):
        leg.in_base, leg.out_base = draw(WORD), draw(WORD)
        leg.in_scale, leg.out_scale = draw(st.integers(0, 14)), draw(st.integers(0, 14))
        leg.flags = LegFlag.SHIFT_IN_SET | LegFlag.SHIFT_OUT_SET
        leg.flags |= draw(st.sampled_from([0, LegFlag.SACK])) | draw(st.sampled_from([0, LegFlag.TIMESTAMPS]))
        leg.ts_in, leg.ts_out = draw(WORD), draw(WORD)
        leg.path.mtu, leg.path_mtu = draw(st.sampled_from([0, 576, 1500])), draw(st.sampled_from([0, 0, 1280]))
        leg.path.ethernet = draw(st.sampled_from([1, 1, 0]))
    mobile.shift_in, mobile.shift_out = draw(WORD), draw(WORD)
    session.flags = draw(
        st.sampled_from([0] * 6 + [SessionFlag.RESUMABLE] * 4 + [SessionFlag.RESUMABLE | SessionFlag.STOPPED])
    )


@st.composite
def options(draw: st.DrawFn, base: int) -> bytes:
    """Of any kind in any order, padded; `base` is the sequence number that is acknowledged."""
    made = b""
    for kind in draw(st.lists(st.sampled_from(["nop", "stamps", "aligned", "sack", "unknown", "end"]), max_size=6)):
        match kind:
            case "nop":
                more = b"\x01"
            case "stamps":
                more = b"\x08\x0a" + struct.pack("!II", draw(WORD), draw(WORD))
            case "aligned":
                more = b"\x01\x01\x08\x0a" + struct.pack("!II", draw(WORD), draw(WORD))
            case "sack":
                edges = draw(
                    st.lists(st.integers(-5000, 70000), min_size=2, max_size=8).filter(lambda e: len(e) % 2 == 0)
                )
                words = b"".join(((base + edge) % 2**32).to_bytes(4, "big") for edge in edges)
                more = bytes([5, 2 + len(words)]) + words
            case "unknown":
                body = draw(st.binary(max_size=12))
                more = bytes([draw(st.integers(9, 255)), draw(st.just(2 + len(body)) | st.integers(0, 255))]) + body
            case _:
                more = b"\0"
        if len(made + more) <= 40:
            made += more
    return made + draw(st.sampled_from([b"\x01", b"\0"])) * (-len(made) % 4)


@st.composite
def segments(draw: st.DrawFn, rig: Rig, leg: int) -> Segment:
    """What the peer of a leg could say, and now and then what it could not."""
    session = rig.session
    data, back = (session.down, session.up) if leg == SERVER else (session.up, session.down)
    begins = session.legs[leg].begins_out
    numbers = rig.segment(
        leg,
        draw(st.sampled_from([data.sent, data.acked, session.legs[leg].arrived])) + draw(st.just(0) | NEAR),
        draw(st.sampled_from([back.acked, back.sent, begins])) + draw(st.just(0) | NEAR),
    )
    return Segment(
        numbers.sequence,
        numbers.acknowledgment,
        flags=draw(FLAGS) | draw(st.sampled_from([0, 0, 0, 0x40, 0x80, 0x20])),
        window=draw(st.integers(0, 0xFFFF)),
        options=draw(options(numbers.acknowledgment)) if draw(IS) else b"",
        payload=draw(st.binary(max_size=64) | st.sampled_from([b"", bytes(536), bytes(1400)])),
        hop_limit=draw(st.sampled_from([64] * 16 + [255, 2, 1, 0])),
        service=draw(st.integers(0, 255)),
        urgent=draw(st.sampled_from([0, 0, 9])),
        reserved=draw(st.sampled_from([0, 0, 15])),
    )


def test_whatever_is_said_is_said_on_the_other_leg_as_the_model_has_it(bare_rig: Rig):
    rig = bare_rig

    @settings(max_examples=250)
    @given(st.data())
    def converse(data: st.DataObject) -> None:
        data.draw(sessions(rig))
        for _ in range(data.draw(st.integers(1, 5))):
            leg = data.draw(st.sampled_from([rig.session.active, SERVER]))
            segment = data.draw(segments(rig, leg))
            has_sack = not segment.flags & ACK and b"\x05" in segment.options
            if has_sack:  # blocks are relative to an ACK
                continue
            if rig.session.state != SessionState.OPEN and segment.flags & (SYN | ACK | RST) == SYN:
                continue  # the addresses are used again: the flow goes
            gso_size = data.draw(st.sampled_from([0, 0, 536]))
            if rig.session.legs[leg].family != rig.session.legs[SERVER if leg != SERVER else rig.session.active].family:
                gso_size = 0  # a test run makes no train of which the kernel would change the family
            result = check(rig, leg, segment, gso_size=gso_size)
            event(f"drops {[*result.drops]}")

    converse()


def inside(rig: Rig) -> bool:
    """Whether a packet would still be inside the programs."""
    busy = rig.program.map("busy")
    values = [busy.lookup(processor.to_bytes(4, "little")) for processor in range(busy.max_entries)]
    return any((value or b"\1")[0] & 1 for value in values)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes changed, most of them in the headers; cut off or longer."""
    made = bytearray(data)
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2, 4]))):
        at = draw(st.integers(12, min(len(made), 114) - 1) | st.integers(12, len(made) - 1))
        made[at] = draw(st.integers(0, 255) | st.sampled_from([made[at] ^ 1 << bit for bit in range(8)]))
    return bytes(made[: draw(st.just(len(made)) | st.integers(14, len(made)))]) + draw(
        st.just(b"") | st.binary(max_size=50)
    )


def test_whatever_comes_is_left_alone_or_dropped_and_counted_or_goes_on_whole(bare_rig: Rig):
    rig = bare_rig

    @settings(max_examples=400)
    @given(st.data())
    def disturb(data: st.DataObject) -> None:
        data.draw(sessions(rig))
        leg = data.draw(st.sampled_from([rig.session.active, SERVER]))
        sent = rig.frame(leg, data.draw(segments(rig, leg)))
        arrives = data.draw(damaged(sent))
        before = timeless(rig.session)
        with contextlib.suppress(BpfError):  # too short for a test run
            result = rig.run(arrives, gso_size=data.draw(st.sampled_from([0, 0, 0, 1, 1400, 65535])))
            event(f"{result.verdict} {[*result.drops]}")
            match result.verdict:
                case -1:
                    if result.frame != arrives:  # a SYN for a port that mobile legs come to
                        came = read(arrives)
                        assert came.segment.flags & SYN
                        without_ecn = replace(came.segment, flags=came.segment.flags & ~0xC0)
                        assert read(result.frame) == replace(came, segment=without_ecn)
                    assert result.drops == {}
                    assert timeless(rig.session) == before
                case 2:
                    assert list(result.drops.values()) == [1]
                case 7:
                    assert result.drops == {}
                    seen, came = read(result.frame), read(arrives)
                    assert seen.tcp_checksum == came.tcp_checksum
                    assert seen.ip_checksum == came.ip_checksum
                    assert seen.segment.payload == came.segment.payload
                    assert seen.padding == came.padding
                case _:
                    raise AssertionError(result.verdict)
            assert not inside(rig)

    disturb()


def test_whatever_the_kernel_sends_is_left_alone_or_dropped_and_counted(bare_rig: Rig):
    rig = bare_rig

    @settings(max_examples=100)
    @given(st.data())
    def send(data: st.DataObject) -> None:
        data.draw(sessions(rig))
        leg = data.draw(st.sampled_from([MOBILE, SERVER]))
        sent = data.draw(damaged(rig.outgoing(leg, data.draw(segments(rig, leg)))))
        with contextlib.suppress(BpfError):
            result = rig.run(sent, program="splice_egress", ifindex=rig.interface)
            event(f"{result.verdict} {[*result.drops]}")
            if result.verdict == DROP:
                assert result.drops == {DropReason.KERNEL_SPOKE.name.lower(): 1}
            else:
                assert (result.verdict, result.frame, result.drops) == (NEXT, sent, {})

    send()
