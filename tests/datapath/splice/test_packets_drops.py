"""What the splice drops, each for its own reason and without a trace besides; and what it leaves to the kernel."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from tests.datapath.splice.packet_bench import (
    ENDS,
    FAMILIES,
    MOBILE,
    NEXT,
    SECOND_MOBILE,
    Rig,
    Told,
    read,
)
from tests.datapath.splice.packet_model import SLACK, check, refused, timeless, untouched

from msocks.datapath.splice.events import EVENT_PACKET_BYTES, EventType, PacketEvent
from msocks.datapath.splice.layout import SERVER, DropReason, LegState, SessionFlag, SessionState
from msocks.datapath.splice.segments import ACK, FIN, PSH, RST, SYN

LEGS = [MOBILE, SERVER]
KINDS = [ACK, ACK | PSH, FIN | ACK, SYN, SYN | ACK, RST, RST | ACK, 0, PSH, FIN]


def segment_of(
    rig: Rig, leg: int, flags: int = ACK, *, offset: int = 0, acks: int = 0, payload: bytes = b"data"
) -> bytes:
    """A frame at the place where the streams are, moved by so much."""
    at, acked = (5000, 8500) if leg == MOBILE else (9000, 4500)
    return rig.frame(leg, rig.segment(leg, at + offset, acked + acks, flags, payload=payload))


def dropped(rig: Rig, leg: int, frame: bytes, reason: DropReason) -> None:
    """One counter, the stream's own, and nothing else."""
    before = rig.snapshot()
    result = rig.run(frame)
    assert (result.verdict, result.drops, result.told) == (2, {reason.name.lower(): 1}, [])
    (before.up if leg == MOBILE else before.down).dropped += 1
    assert timeless(rig.session) == timeless(before)


# -- implausible numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", KINDS)
@pytest.mark.parametrize("leg", LEGS)
def test_numbers_of_nobody(rig: Rig, leg: int, flags: int):
    # What is acknowledged upstream is 4000, downstream 8000; the window reaches 60000 further.
    acked, sent, other_acked, other_sent = (4000, 5000, 8000, 9000) if leg == MOBILE else (8000, 9000, 4000, 5000)

    def frame(offset: int, acks: int, payload: bytes = b"") -> bytes:
        return rig.frame(leg, rig.segment(leg, offset, acks, flags, payload=payload))

    dropped(rig, leg, frame(acked - 60000 - SLACK - 1, other_acked), DropReason.OLD_SEQUENCE)
    dropped(rig, leg, frame(acked - 60000 - SLACK - 101, other_acked, bytes(100)), DropReason.OLD_SEQUENCE)
    dropped(rig, leg, frame(acked + 60000 + SLACK + 1, other_acked), DropReason.BEYOND_WINDOW)
    dropped(rig, leg, frame(acked + (1 << 31) - 1, other_acked), DropReason.BEYOND_WINDOW)
    dropped(rig, leg, frame(acked - (1 << 31), other_acked), DropReason.OLD_SEQUENCE)
    if flags & ACK and not flags & RST:
        dropped(rig, leg, frame(sent, other_acked - 60000 - SLACK - 1), DropReason.OLD_ACK)
        dropped(rig, leg, frame(sent, other_sent + 60000 + SLACK + 1), DropReason.ACK_OF_UNSENT)
    elif not flags & (ACK | SYN | RST):
        dropped(rig, leg, frame(sent, other_acked), DropReason.NO_ACK)


@pytest.mark.parametrize("leg", LEGS)
def test_the_last_that_are_somebodys(rig: Rig, leg: int):
    """Whatever the receiver could answer, with a challenge ACK for instance, has to reach it."""
    acked, sent, other_acked, other_sent = (4000, 5000, 8000, 9000) if leg == MOBILE else (8000, 9000, 4000, 5000)
    for offset, acks in [
        (acked - 60000 - SLACK, other_acked),
        (acked + 60000 + SLACK, other_acked),
        (sent, other_acked - 60000 - SLACK),
        (sent, other_sent + 60000 + SLACK),
    ]:
        rig.splice()
        assert check(rig, leg, rig.segment(leg, offset, acks, window=0)).drops == {}


@pytest.mark.parametrize("leg", LEGS)
def test_the_hop_limit_ends(rig: Rig, leg: int):
    for hop_limit in (0, 1):
        frame = rig.frame(leg, rig.segment(leg, 5000, 4500, hop_limit=hop_limit))
        dropped(rig, leg, frame, DropReason.HOP_LIMIT)
    assert check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, hop_limit=2)).seen.segment.hop_limit == 1


@pytest.mark.parametrize("leg", LEGS)
def test_no_way_on(rig: Rig, leg: int):
    rig.session.legs[SERVER if leg == MOBILE else MOBILE].path.known = 0
    dropped(rig, leg, segment_of(rig, leg), DropReason.NO_PATH)


# -- sessions and legs that are over -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", KINDS)
@pytest.mark.parametrize("leg", LEGS)
def test_a_stale_incarnation(rig: Rig, leg: int, flags: int):
    frame = segment_of(rig, leg, flags)
    rig.session.incarnation += 1
    refused(rig, frame, DropReason.STALE_FLOW)
    rig.session.incarnation -= 1
    rig.session.state = SessionState.FREE
    refused(rig, frame, DropReason.STALE_FLOW)


@pytest.mark.parametrize("state", [SessionState.OPENING, SessionState.RESET])
@pytest.mark.parametrize("leg", LEGS)
def test_a_session_that_is_not_open(rig: Rig, leg: int, state: SessionState):
    rig.session.state = state
    dropped(rig, leg, segment_of(rig, leg), DropReason.STALE_FLOW)


@pytest.mark.parametrize("leg", LEGS)
def test_ends_that_have_still_to_be_told_are_heard(rig: Rig, leg: int):
    session = rig.session
    session.state = SessionState.RESETTING
    frame = segment_of(rig, leg)
    result = rig.run(frame)
    acknowledged = int.from_bytes(frame[42:46], "big")
    assert (result.drops, result.told) == ({"stale_flow": 1}, [Told(EventType.SPOKE, leg, acknowledged)])
    dropped(rig, leg, segment_of(rig, leg, RST), DropReason.STALE_FLOW)


@pytest.mark.parametrize("flags", KINDS)
def test_a_leg_that_was_replaced(rig: Rig, flags: int):
    rig.leg(SECOND_MOBILE, 4)
    rig.session.active = SECOND_MOBILE
    dropped(rig, MOBILE, segment_of(rig, MOBILE, flags), DropReason.STALE_LEG)
    rig.session.active = MOBILE
    for state in (LegState.NONE, LegState.STOPPED):
        rig.session.legs[MOBILE].state = state
        dropped(rig, MOBILE, segment_of(rig, MOBILE, flags), DropReason.STALE_LEG)


@pytest.mark.parametrize(
    "state", [SessionState.OPENING, SessionState.CLOSING, SessionState.RESET, SessionState.RESETTING]
)
def test_a_mobile_that_uses_the_addresses_again_comes_to_the_listener(rig: Rig, state: SessionState):
    """RFC 6191; of an open session a SYN is what it always was, and the server's addresses are not chosen by it."""
    rig.session.state = state
    again = rig.frame(MOBILE, rig.segment(MOBILE, 123456, 0, SYN | 0xC0))
    result = rig.run(again)
    assert (result.verdict, result.drops, result.told) == (NEXT, {}, [])
    assert read(result.frame).segment.flags == SYN
    # Anybody can have sent it: the flow stays until the mobile shows that it has got the listener's answer.
    assert rig.run(segment_of(rig, MOBILE)).verdict != NEXT
    answer = replace(rig.segment(MOBILE, 0, 0), sequence=777000, acknowledgment=0, flags=SYN | ACK)
    sent = rig.run(rig.outgoing(MOBILE, answer), program="splice_egress", ifindex=rig.interface)
    assert (sent.verdict, sent.drops) == (NEXT, {})
    stranger = replace(rig.segment(MOBILE, 123457, 0), acknowledgment=777002)
    assert rig.run(rig.frame(MOBILE, stranger)).verdict != NEXT
    untouched(rig, rig.frame(MOBILE, replace(stranger, acknowledgment=777001)))
    untouched(rig, segment_of(rig, MOBILE))  # the flow is gone
    rig.splice()
    rig.session.state = state
    assert rig.run(segment_of(rig, SERVER, SYN)).verdict != NEXT
    assert rig.run(segment_of(rig, MOBILE, SYN | ACK)).verdict != NEXT


def test_a_leg_in_its_handshake_is_the_kernels(rig: Rig):
    for leg in LEGS:
        rig.session.legs[leg].state = LegState.HANDSHAKE
        untouched(rig, segment_of(rig, leg))


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, FIN | ACK, SYN, SYN | ACK, 0])
@pytest.mark.parametrize("leg", LEGS)
def test_a_stopped_session(rig: Rig, leg: int, flags: int):
    rig.session.flags = SessionFlag.STOPPED | SessionFlag.RESUMABLE
    dropped(rig, leg, segment_of(rig, leg, flags), DropReason.STOPPED)


# -- packets that are broken -------------------------------------------------------------------------------------------


def mutated(frame: bytes, at: int, form: str, value: int) -> bytes:
    data = bytearray(frame)
    struct.pack_into(form, data, at, value)
    return bytes(data)


@pytest.mark.parametrize("family", [4, 6])
def test_headers_that_cannot_be(bare_rig: Rig, family: int):
    rig = bare_rig
    rig.splice(family, 4)
    frame = segment_of(rig, MOBILE, payload=b"")
    tcp = 34 if family == 4 else 54
    for words in range(5):
        refused(rig, mutated(frame, tcp + 12, "!B", words << 4), DropReason.MALFORMED)
    for words in range(6, 16):  # more than there is
        refused(rig, mutated(frame, tcp + 12, "!B", words << 4), DropReason.MALFORMED)
    at, whole = (16, 40) if family == 4 else (18, 20)
    for length in (1, 19, whole - 1, whole + 1, 1500, 0xFFFF):
        refused(rig, mutated(frame, at, "!H", length), DropReason.MALFORMED)


@pytest.mark.parametrize("family", [4, 6])
def test_truncated_anywhere(bare_rig: Rig, family: int):
    rig = bare_rig
    rig.splice(family, family)
    frame = segment_of(rig, MOBILE, payload=b"some payload")
    headers = 54 if family == 4 else 74
    for size in range(34 if family == 4 else 54, len(frame)):
        before = rig.snapshot()
        result = rig.run(frame[:size])
        if size < headers:
            assert (result.verdict, result.drops) == (NEXT, {})
        else:
            assert (result.verdict, result.drops) == (2, {"malformed": 1})
        assert bytes(rig.session) == bytes(before)


def with_ip_options(rig: Rig, words: int) -> bytes:
    frame = segment_of(rig, MOBILE)
    size = int.from_bytes(frame[16:18], "big") + 4 * words
    header = bytes([0x45 + words, 0]) + size.to_bytes(2, "big") + frame[18:34]
    return frame[:14] + header + b"\x94\x04\0\0" * words + frame[34:]


def test_ip_options(rig: Rig):
    """The kernel would answer with an RST that has them as well."""
    for words in range(1, 11):
        frame = with_ip_options(rig, words)
        refused(rig, frame, DropReason.IP_OPTIONS)
        untouched(rig, mutated(frame, 34 + 4 * words, "!H", 1))  # another port
        untouched(rig, mutated(frame, 20, "!H", 1))  # a later fragment, which has no ports
        untouched(rig, frame[: 34 + 4 * words + 3])


def test_fragments(rig: Rig):
    frame = segment_of(rig, MOBILE)
    for first in (0x2000, 0x6000):
        refused(rig, mutated(frame, 20, "!H", first), DropReason.FRAGMENT)
    for later in (0x0001, 0x2001, 0x1FFF):
        untouched(rig, mutated(frame, 20, "!H", later))


@pytest.mark.parametrize("family", [4, 6])
def test_another_version_than_the_frame_says(bare_rig: Rig, family: int):
    bare_rig.splice(family, 4)
    frame = segment_of(bare_rig, MOBILE)
    for version in {*range(16)} - {family}:
        untouched(bare_rig, mutated(frame, 14, "!B", version << 4 | frame[14] & 15))


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mobile", "server"), FAMILIES)
def test_what_does_not_fit_is_told_once_in_a_while(bare_rig: Rig, mobile: int, server: int):
    rig = bare_rig
    session = rig.splice(mobile, server)
    room = 1400 - (40 if server == 4 else 60)
    for path_mtu, mtu in [(0, 1400), (1400, 1500), (1500, 1400), (1400, 0)]:
        session.legs[SERVER].path.mtu, session.legs[SERVER].path_mtu = mtu, path_mtu
        session.complained_ns = 0
        check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, payload=bytes(room)))
        packet = rig.segment(MOBILE, 5000, 8500, payload=bytes(room + 1))
        result = check(rig, MOBILE, packet)
        assert result.told == [Told(EventType.TOO_BIG, MOBILE, 1400)]
        frame = rig.frame(MOBILE, packet)
        event = PacketEvent.from_buffer_copy(result.records[0])
        assert (event.length, event.copied) == (len(frame) - 14, EVENT_PACKET_BYTES)
        assert bytes(event.packet) == frame[14 : 14 + EVENT_PACKET_BYTES]
        assert check(rig, MOBILE, packet).told == []
    session.legs[SERVER].path.mtu = session.legs[SERVER].path_mtu = 0
    check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, payload=bytes(2000)))


@pytest.mark.parametrize("family", [4, 6])
def test_of_a_train_of_segments_each_has_to_fit(bare_rig: Rig, family: int):
    rig = bare_rig
    session = rig.splice(family, family)
    session.legs[SERVER].path.mtu = 1000
    room = 1000 - (40 if family == 4 else 60)
    train = rig.segment(MOBILE, 5000, 8500, payload=bytes(3000))
    check(rig, MOBILE, train, gso_size=room)
    assert session.up.sent == 8000
    assert check(rig, MOBILE, train, gso_size=room + 1).told == [Told(EventType.TOO_BIG, MOBILE, 1000)]


# -- what is not ours --------------------------------------------------------------------------------------------------


def ethernet(packet: Packet) -> bytes:
    return bytes(Ether(dst="00:00:00:00:00:00", src="02:00:00:00:00:99") / packet)


def test_other_protocols(rig: Rig):
    (source, port), (destination, to) = ENDS[MOBILE, 4]
    (source6, _), (destination6, _) = ENDS[MOBILE, 6]
    ipv6 = IPv6(src=source6, dst=destination6)
    padding = Raw(bytes(64))
    for packet in (
        IP(src=source, dst=destination) / UDP(sport=port, dport=to) / padding,
        IP(src=source, dst=destination) / ICMP() / padding,
        ipv6 / UDP(sport=port, dport=to) / padding,
        ipv6 / IPv6ExtHdrFragment(offset=0, m=1) / TCP(sport=port, dport=to) / padding,
        ipv6 / IPv6ExtHdrDestOpt() / TCP(sport=port, dport=to) / padding,
        # A tag that no interface has taken off.
        Dot1Q(vlan=5) / IP(src=source, dst=destination) / TCP(sport=port, dport=to) / padding,
        ARP(pdst=destination) / padding,
        Raw(bytes(100)),
    ):
        untouched(rig, ethernet(packet))


@pytest.mark.parametrize("family", [4, 6])
def test_an_icmp_error_about_a_leg_is_told_and_the_kernels_besides(bare_rig: Rig, family: int):
    rig = bare_rig
    rig.splice(family, 4)
    _, local = ENDS[MOBILE, family]
    quoted = rig.outgoing(MOBILE, rig.segment(MOBILE, 1, 1, payload=bytes(100)))[14:]
    if family == 4:
        error: Packet = IP(src="203.0.113.1", dst=local[0]) / ICMP(type=3, code=4, nexthopmtu=1300) / Raw(quoted)
    else:
        error = IPv6(src="2001:db8:9::1", dst=local[0]) / ICMPv6PacketTooBig(mtu=1300) / Raw(quoted)
    frame = ethernet(error)
    before = rig.snapshot()
    result = rig.run(frame)
    assert (result.verdict, result.frame, result.drops) == (NEXT, frame, {})
    assert result.told == [Told(EventType.ICMP, MOBILE, 0)]
    event = PacketEvent.from_buffer_copy(result.records[0])
    assert (event.length, bytes(event.packet)[: event.copied]) == (len(frame) - 14, frame[14:])
    assert bytes(rig.session) == bytes(before)
    # Of another connection, and cut off anywhere: nothing.
    ports = len(frame) - len(quoted) + (20 if family == 4 else 40)
    untouched(rig, mutated(frame, ports, "!H", 1))
    for size in range(34 if family == 4 else 54, ports + 4):
        untouched(rig, frame[:size])
