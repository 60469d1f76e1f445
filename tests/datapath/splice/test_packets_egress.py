"""What this host's kernel sends on legs, and what arrives on legs that are still the kernel's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.datapath.splice.packet_bench import (
    DROP,
    ENDS,
    LISTENER,
    MOBILE,
    NEXT,
    Result,
    Rig,
    Seen,
    Segment,
    frame,
    read,
)
from tests.datapath.splice.packet_model import timeless, untouched
from tests.datapath.splice.two_hosts import packed

from msocks.datapath.splice.layout import (
    MARK_OF_DAEMON,
    SERVER,
    LegFlag,
    LegState,
    Session,
    SessionFlag,
    SessionState,
)
from msocks.datapath.splice.segments import ACK, FIN, PSH, RST, SYN, timestamps
from msocks.datapath.splice.tables import flow_key, opening_key

ECE, CWR = 0x40, 0x80
NOP = b"\x01"
STAMPS = timestamps(111, 222)[2:]
SYN_OPTIONS = b"\x02\x04\x05\xb4\x04\x02" + STAMPS + b"\x01\x03\x03\x07"
RECONNECT = bytes.fromhex("05018d0181") + bytes(126)


def leaves(rig: Rig, data: bytes, *, mark: int = 0) -> Result:
    return rig.run(data, program="splice_egress", mark=mark, ifindex=rig.interface)


def passed(rig: Rig, data: bytes) -> Seen:
    result = leaves(rig, data)
    assert (result.verdict, result.drops, result.told) == (NEXT, {}, [])
    seen = read(result.frame)
    assert seen.ip_checksum
    assert seen.tcp_checksum
    return seen


@pytest.fixture(params=[4, 6])
def opening(request: pytest.FixtureRequest, bare_rig: Rig) -> Iterator[Rig]:
    """A server leg before its SYN: the local address is not known yet."""
    rig = bare_rig
    session = rig.splice(4, request.param)
    rig.forget()
    (address, port), (_, local_port) = ENDS[SERVER, request.param]
    key = opening_key((packed(address), port), local_port)
    session.state = SessionState.OPENING
    server = session.legs[SERVER]
    server.in_base = server.out_base = server.flags = server.path.known = 0
    with socket.socket(socket.AF_INET if request.param == 4 else socket.AF_INET6) as sock:
        remote = packed(address), port
        rig.tables.prepare(rig.slot, sock.fileno(), remote, local_port, mobile=None, smallest_mtu=0)
        yield rig
    rig.tables.delete_opening(key)


def syn(rig: Rig, flags: int = SYN, options: bytes = SYN_OPTIONS) -> bytes:
    return rig.outgoing(SERVER, Segment(0xFFFFFFFF, 0, flags, 64000, options))


# -- a server leg's handshake ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [0, 536, 1300, 1459, 1460, 1461, 9000])
def test_the_server_is_asked_for_segments_that_fit_the_mobiles_link(opening: Rig, announced: int):
    opening.session.legs[SERVER].announced = announced
    seen = passed(opening, syn(opening))
    mss = min(announced or 1460, 1460)
    assert seen.segment.options == SYN_OPTIONS[:2] + mss.to_bytes(2, "big") + SYN_OPTIONS[4:]


def test_timestamps_are_not_offered_that_the_mobile_has_not(opening: Rig):
    opening.session.flags = SessionFlag.STRIP_TIMESTAMPS
    assert passed(opening, syn(opening)).segment.options == SYN_OPTIONS.replace(STAMPS, NOP * 10)
    opening.session.legs[SERVER].announced = 1000
    lowered = SYN_OPTIONS[:2] + (1000).to_bytes(2, "big") + SYN_OPTIONS[4:]
    assert passed(opening, syn(opening)).segment.options == lowered.replace(STAMPS, NOP * 10)


def test_ecn_is_not_offered(opening: Rig):
    for options in (SYN_OPTIONS, b""):
        seen = passed(opening, syn(opening, SYN | ECE | CWR, options))
        assert seen == replace(read(syn(opening, SYN, options)))


def test_nothing_else_of_a_syn_changes(opening: Rig):
    assert passed(opening, syn(opening)) == read(syn(opening))


def kept_back(rig: Rig, data: bytes) -> None:
    result = leaves(rig, data)
    assert (result.verdict, result.drops, result.told) == (DROP, {}, [])


def test_the_handshake_ack_is_noted_and_kept_back(opening: Rig):
    """It is the mobile's to end the handshake: the server times it by that, and may not speak before."""
    server = opening.session.legs[SERVER]
    data = opening.outgoing(SERVER, Segment(0x12345678, 0x9ABCDEF0, ACK, 502, timestamps(333, 444)))
    kept_back(opening, data)
    assert (server.out_base, server.in_base, server.flags) == (0x12345678, 0x9ABCDEF0, LegFlag.NOTED)
    assert (server.ts_out, server.ts_in) == (333, 444)
    path = server.path
    assert (path.known, path.ethernet, path.ifindex, path.mtu) == (1, 1, opening.interface, 1500)
    assert bytes(path.next_hop) == data[:6]
    assert bytes(path.own) == data[6:12]


def test_what_the_kernel_says_again_is_not_noted_again(opening: Rig):
    server = opening.session.legs[SERVER]
    for sequence in (1000, 2000):
        kept_back(opening, opening.outgoing(SERVER, Segment(sequence, 5000 + sequence)))
    assert (server.out_base, server.in_base) == (1000, 6000)


def test_a_handshake_that_ends_at_once_is_no_connection_to_the_server(opening: Rig):
    data = opening.outgoing(SERVER, Segment(1000, 6000, FIN | ACK, 502))
    assert passed(opening, data) == replace(read(data), segment=replace(read(data).segment, flags=RST | ACK, window=0))


def test_a_handshake_that_ends_in_a_reset_passes(opening: Rig):
    data = opening.outgoing(SERVER, Segment(1000, 0, RST, 0))
    assert passed(opening, data) == read(data)


def test_toward_another_server_from_the_same_port_nothing_changes(opening: Rig):
    remote, local = ENDS[SERVER, opening.session.legs[SERVER].family]
    data = frame(local, (remote[0], remote[1] + 1), Segment(1000, 2000, SYN | ECE | CWR, 64000, SYN_OPTIONS))
    assert leaves(opening, data).frame == data


def test_a_stale_opening_is_nobodys(opening: Rig):
    opening.session.incarnation += 1
    data = syn(opening, SYN | ECE | CWR)
    assert leaves(opening, data).frame == data


@pytest.mark.parametrize("family", [4, 6])
def test_a_leg_whose_flow_is_known_already_is_in_its_handshake_still(bare_rig: Rig, family: int):
    rig = bare_rig
    session = rig.splice(4, family)
    session.legs[SERVER].state = LegState.HANDSHAKE
    kept_back(rig, rig.outgoing(SERVER, Segment(1000, 2000)))


# -- once a leg is spliced ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, RST, RST | ACK, FIN | ACK, SYN, SYN | ACK])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("leg", [MOBILE, SERVER])
def test_the_kernel_is_silenced(bare_rig: Rig, leg: int, family: int, flags: int):
    rig = bare_rig
    session = rig.splice(family, family)
    data = rig.outgoing(leg, Segment(1000, 2000, flags, payload=b"of the kernel"))

    def silenced() -> None:
        before = Session.from_buffer_copy(bytes(session))
        # A mark is no proof: any socket may have it, and the kernel's answers have that of the packet.
        for mark in (0, MARK_OF_DAEMON):
            result = leaves(rig, data, mark=mark)
            assert (result.verdict, result.drops, result.told) == (DROP, {"kernel_spoke": 1}, [])
        assert bytes(session) == bytes(before)

    for leg_state in (LegState.LIVE, LegState.STOPPED, LegState.NONE):
        session.legs[leg].state = leg_state
        silenced()
    session.state = SessionState.RESET
    if (leg, flags) != (MOBILE, SYN | ACK):  # the listener's, to a host that uses the addresses again
        silenced()
    session.legs[leg].state = LegState.HANDSHAKE
    session.incarnation += 1
    silenced()


def test_what_belongs_to_nobody_passes(rig: Rig):
    _, (_, port) = ENDS[SERVER, 4]
    for source in (port, LISTENER, 22):
        data = frame(("192.0.2.1", source), ("198.51.100.99", 443), Segment(1, 2, ACK | ECE, options=STAMPS + NOP * 2))
        untouched(rig, data, program="splice_egress")


def test_a_broken_packet_of_the_kernels_passes(rig: Rig):
    data = bytearray(rig.outgoing(SERVER, Segment(1, 2)))
    data[46] = 0xF0
    untouched(rig, bytes(data), program="splice_egress")


# -- legs that come ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[4, 6])
def arriving(request: pytest.FixtureRequest, bare_rig: Rig) -> Iterator[Rig]:
    """A port that mobile legs come to, and a socket that listens there."""
    rig = bare_rig
    rig.splice(request.param, 4)
    rig.forget()
    family = socket.AF_INET if request.param == 4 else socket.AF_INET6
    with socket.create_server(("", LISTENER), family=family):
        yield rig
    rig.program.map("caps").delete(cap_key(rig))


def cap_key(rig: Rig) -> bytes:
    remote, local = ENDS[MOBILE, rig.session.legs[MOBILE].family]
    return flow_key((packed(remote[0]), remote[1]), (packed(local[0]), local[1]))


def cap_of(rig: Rig) -> tuple[int, int] | None:
    value = rig.program.map("caps").lookup(cap_key(rig))
    return None if value is None else (int.from_bytes(value[:4], "little"), int.from_bytes(value[4:], "little"))


def arrives(rig: Rig, segment: Segment) -> Seen:
    result = rig.run(rig.frame(MOBILE, segment))
    assert (result.verdict, result.drops) == (NEXT, {})
    return read(result.frame)


@pytest.mark.parametrize("options", [b"", SYN_OPTIONS])
def test_ecn_is_not_agreed_on(arriving: Rig, options: bytes):
    asked = Segment(1, 0, SYN | ECE | CWR, options=options)
    seen = arrives(arriving, asked)
    assert seen.segment == replace(asked, flags=SYN)
    assert seen.tcp_checksum
    # Of a port that is not ours, it is no affair of ours.
    arriving.tables.remove_listener(LISTENER)
    try:
        assert arrives(arriving, asked).segment == asked
    finally:
        arriving.tables.add_listener(LISTENER)


@pytest.mark.parametrize("sequence", [1000, 0xFFFFFFFF - 60])
@pytest.mark.parametrize("more", [b"", b"upstream bytes"])
def test_the_end_of_a_reconnect_is_noted(arriving: Rig, sequence: int, more: bytes):
    arrives(arriving, Segment(sequence, 1, ACK | PSH, options=timestamps(1, 2), payload=RECONNECT + more))
    assert cap_of(arriving) == ((sequence + 131) % 2**32, 0)


def test_what_is_no_whole_reconnect_is_not(arriving: Rig):
    for payload in (RECONNECT[:-1], b"\x05\x01\x00" + bytes(200), RECONNECT[:4] + b"\x80" + RECONNECT[5:], b"5"):
        arrives(arriving, Segment(1000, 1, ACK | PSH, payload=payload))
        assert cap_of(arriving) is None


def test_nobody_listening_means_nothing_to_note(arriving: Rig):
    remote, local = ENDS[MOBILE, arriving.session.legs[MOBILE].family]
    arriving.tables.add_listener(LISTENER + 1)
    data = frame(remote, (local[0], LISTENER + 1), Segment(1000, 1, ACK | PSH, payload=RECONNECT))
    assert arriving.run(data).verdict == NEXT
    assert len(list(arriving.program.map("caps").keys())) == 0
    arriving.tables.remove_listener(LISTENER + 1)


@pytest.mark.parametrize("end", [1131, 50])
def test_the_kernel_acknowledges_a_reconnect_once_and_nothing_behind_it(arriving: Rig, end: int):
    rig = arriving
    arrives(rig, Segment((end - 131) % 2**32, 1, ACK | PSH, payload=RECONNECT + b"more"))

    def acknowledges(to: int, flags: int = ACK, payload: bytes = b"", options: bytes = b"") -> Result:
        return leaves(rig, rig.outgoing(MOBILE, Segment(1, to % 2**32, flags, payload=payload, options=options)))

    for to in (end - 1, end):
        assert read(acknowledges(to).frame).segment.acknowledgment == to % 2**32
    result = acknowledges(end + 4, options=timestamps(5, 6))
    seen = read(result.frame)
    assert (result.verdict, seen.segment.acknowledgment, seen.segment.window) == (NEXT, end, 500)
    assert seen.tcp_checksum
    for _ in range(2):
        result = acknowledges(end + 4)
        assert (result.verdict, result.drops) == (DROP, {"untimely_ack": 1})
    for flags, payload in [(ACK | PSH, b"reply"), (FIN | ACK, b""), (RST | ACK, b"")]:
        result = acknowledges(end + 4, flags, payload)
        seen = read(result.frame)
        assert (result.verdict, seen.segment.acknowledgment, seen.segment.payload) == (NEXT, end, payload)
        assert seen.tcp_checksum


def test_acknowledgments_of_a_leg_in_its_handshake_are_capped_as_well(arriving: Rig):
    rig = arriving
    arrives(rig, Segment(1000, 1, ACK | PSH, payload=RECONNECT + b"more"))
    rig.leg(MOBILE, rig.session.legs[MOBILE].family).state = LegState.HANDSHAKE
    before = timeless(rig.session)
    assert passed(rig, rig.outgoing(MOBILE, Segment(1, 1135))).segment.acknowledgment == 1131
    assert timeless(rig.session) == before
