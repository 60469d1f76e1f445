"""What the server hears while no mobile leg carries, what is copied of what it sends, and how a later leg begins."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator

import pytest
from tests.datapath.splice.packet_bench import DROP, ENDS, MOBILE, REDIRECT, Result, Rig, read
from tests.datapath.splice.packet_model import HELD_MOST, check

from msocks.datapath.splice.events import EventType, HeldPacket
from msocks.datapath.splice.layout import SERVER, SessionFlag
from msocks.datapath.splice.libbpf import RingBuffer
from msocks.datapath.splice.segments import ACK, FIN, PSH, RST, timestamps

LONG_NS = 1_100_000_000
CLOCK = timestamps(0x0A000100, 0x0B000000)


class Copies:
    """What the kernel's half has copied to the daemon."""

    def __init__(self, rig: Rig) -> None:
        self._ring = RingBuffer(rig.program.map("held"))
        self.take()

    def take(self) -> list[HeldPacket]:
        records: list[bytes] = []
        self._ring.consume(records.append)
        return [HeldPacket.from_buffer_copy(raw.ljust(ctypes.sizeof(HeldPacket), b"\0")) for raw in records]

    def close(self) -> None:
        self._ring.close()


@pytest.fixture
def copies(rig: Rig) -> Iterator[Copies]:
    made = Copies(rig)
    yield made
    made.close()


def park(rig: Rig, *, for_ns: int = 0) -> None:
    rig.session.flags = SessionFlag.RESUMABLE | SessionFlag.STOPPED
    rig.session.parked_ns = time.monotonic_ns() - for_ns


def says(rig: Rig, offset: int, payload: bytes = b"", flags: int = ACK) -> Result:
    segment = rig.segment(SERVER, offset, 4000, flags, payload=payload, options=CLOCK)
    return rig.run(rig.frame(SERVER, segment))


def test_what_comes_while_parked_is_noted_and_copied_and_not_acknowledged(rig: Rig, copies: Copies):
    park(rig)
    segment = rig.segment(SERVER, 9000, 4500, ACK | PSH, payload=b"x" * 1000, options=CLOCK)
    assert check(rig, SERVER, segment).drops == {"stopped": 1}
    (copy,) = copies.take()
    assert (copy.event.type, copy.event.slot, copy.event.offset) == (EventType.HELD, rig.slot, 9000)
    assert bytes(copy.packet)[copy.headers : copy.copied] == b"x" * 1000
    assert (copy.tsval, copy.segment) == (0x0A000100, 1000)
    session = rig.session
    assert (session.down.sent, session.down.acked, session.up.acked) == (10000, 8000, 4500)


def test_what_was_damaged_on_its_way_is_not_copied(rig: Rig, copies: Copies):
    park(rig)
    data = bytearray(rig.frame(SERVER, rig.segment(SERVER, 9000, 4500, payload=b"x" * 999, options=CLOCK)))
    data[-1] ^= 1
    assert rig.run(bytes(data)).drops == {"checksum": 1}
    assert copies.take() == []


def test_a_super_packet_is_copied_and_the_size_of_its_segments_told(rig: Rig, copies: Copies):
    park(rig)
    segment = rig.segment(SERVER, 9000, 4000, payload=bytes(3000), options=CLOCK)
    rig.run(rig.frame(SERVER, segment), gso_size=1400)
    (copy,) = copies.take()
    assert (copy.segment, copy.copied - copy.headers) == (1400, 3000)


def test_no_more_than_a_few_packets_are_copied(rig: Rig, copies: Copies):
    park(rig)
    for number in range(HELD_MOST + 3):
        says(rig, 9000 + number, b"x")
    assert len(copies.take()) == HELD_MOST


def test_what_the_mobile_waits_for_is_copied_although_the_places_are_taken(rig: Rig, copies: Copies):
    """The ACK that a PARK brings lets the server send so much that is new; then it says again what is missing."""
    park(rig)
    for number in range(HELD_MOST):
        says(rig, 9000 + number, b"x")
    assert len(copies.take()) == HELD_MOST
    says(rig, 8000, b"again")
    assert offsets(copies) == []
    rig.session.held_ns = time.monotonic_ns() - 200_000_000
    for offset in (8001, 8000, 8000):
        says(rig, offset, b"again")
    assert offsets(copies) == [8000]


def test_what_the_mobile_sends_while_parked_goes_nowhere(rig: Rig, copies: Copies):
    park(rig, for_ns=LONG_NS)
    assert check(rig, MOBILE, rig.segment(MOBILE, 5000, 8500, payload=b"late")).drops == {"stopped": 1}
    assert copies.take() == []


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("gso_size", [0, 1400])
@pytest.mark.parametrize("what", ["data", "retransmission", "fin", "probe"])
def test_after_a_while_the_server_is_told_a_window_of_zero(bare_rig: Rig, family: int, gso_size: int, what: str):
    rig = bare_rig
    rig.splice(4, family)
    park(rig, for_ns=LONG_NS)
    offset, payload, flags = {
        "data": (9000, bytes(3000), ACK),
        "retransmission": (8000, bytes(1001), ACK),
        "fin": (9000, b"", ACK | FIN),
        "probe": (7999, b"", ACK),
    }[what]
    segment = rig.segment(SERVER, offset, 4500, flags, payload=payload, options=CLOCK)
    result = rig.run(rig.frame(SERVER, segment), gso_size=gso_size)
    assert (result.verdict, result.drops) == (REDIRECT, {})
    seen = read(result.frame)
    remote, local = ENDS[SERVER, family]
    assert (seen.source, seen.destination) == (local, remote)
    assert (seen.destination_mac, seen.source_mac) == ("02:00:00:00:00:99", "00:00:00:00:00:00")
    server = rig.session.legs[SERVER]
    answer = seen.segment
    assert (answer.flags, answer.window, answer.payload) == (ACK, 0, b"")
    assert answer.sequence == server.out_base + 4500
    assert answer.acknowledgment == server.in_base + 8000  # as before: nothing that the mobile has not received
    assert answer.options == timestamps(server.ts_out, 0x0A000100)
    assert seen.ip_checksum
    assert seen.tcp_checksum
    assert rig.session.flags & SessionFlag.CLOSED_WINDOW


@pytest.mark.parametrize("for_ns", [0, 800_000_000, -5_000_000, 25 * 3600 * 10**9])
def test_neither_at_once_nor_for_ever(rig: Rig, for_ns: int):
    park(rig, for_ns=for_ns)
    assert says(rig, 8000, b"again").verdict == DROP


def test_an_ack_that_asks_nothing_is_not_answered(rig: Rig):
    """Or two such hosts would answer each other for ever."""
    park(rig, for_ns=LONG_NS)
    assert says(rig, 9000).verdict == DROP
    assert says(rig, 8000).verdict == DROP


def test_a_reset_while_parked_ends_the_session_and_is_not_answered(rig: Rig):
    park(rig, for_ns=LONG_NS)
    result = says(rig, 9000, flags=RST)
    assert (result.verdict, [told.type for told in result.told]) == (DROP, [EventType.SERVER_RESET])


def test_a_later_leg_begins_with_what_it_waits_for(rig: Rig, copies: Copies):
    rig.session.flags = SessionFlag.RESUMABLE | SessionFlag.RESUMING
    rig.session.mobile_edge = 8000 + 60000
    ahead = rig.segment(SERVER, 8500, 4000, payload=b"ahead", options=CLOCK)
    assert check(rig, SERVER, ahead).drops == {"out_of_turn": 1}
    assert check(rig, SERVER, rig.segment(SERVER, 9000, 4000, payload=b"new", options=CLOCK)).drops == {
        "out_of_turn": 1
    }
    assert [copy.event.offset for copy in copies.take()] == [8500, 9000]
    # Both are delivered from there: the mobile may acknowledge them.
    assert rig.session.down.sent == rig.session.legs[SERVER].arrived == 9003
    assert check(rig, SERVER, rig.segment(SERVER, 9000, 4000, options=CLOCK)).verdict == REDIRECT  # without data
    assert check(rig, SERVER, rig.segment(SERVER, 8000, 4000, payload=b"first", options=CLOCK)).verdict == REDIRECT
    assert check(rig, SERVER, ahead).verdict == REDIRECT
    assert copies.take() == []


def silent_for(rig: Rig, milliseconds: int) -> None:
    """The mobile has said nothing for so long, and nothing was copied."""
    rig.session.flags = SessionFlag.RESUMABLE
    rig.session.held_ns = 0
    rig.session.legs[MOBILE].ts_in_at = time.monotonic_ns() - milliseconds * 1_000_000


def offsets(copies: Copies) -> list[int]:
    return [copy.event.offset for copy in copies.take()]


def test_what_is_said_again_to_a_silent_mobile_is_copied_once_in_a_while(rig: Rig, copies: Copies):
    again = rig.segment(SERVER, 8000, 4000, payload=b"again", options=CLOCK)
    silent_for(rig, 400)
    rig.session.flags = 0
    rig.run(rig.frame(SERVER, again))
    assert copies.take() == []  # a plain client's server shall give up
    silent_for(rig, 200)
    rig.run(rig.frame(SERVER, again))
    assert copies.take() == []
    silent_for(rig, 400)
    for _ in range(3):
        assert rig.run(rig.frame(SERVER, again)).verdict == REDIRECT
    assert offsets(copies) == [8000]


def test_what_is_sent_without_an_ack_while_data_are_on_the_way_is_copied(rig: Rig, copies: Copies):
    """The server's tail loss probe: a later leg tells the server that it has come out of order."""
    probe = rig.segment(SERVER, 9000, 4000, payload=b"new", options=CLOCK)
    silent_for(rig, 50)
    rig.run(rig.frame(SERVER, probe))
    assert copies.take() == []
    silent_for(rig, 150)
    rig.session.down.acked = rig.session.down.sent
    rig.run(rig.frame(SERVER, rig.segment(SERVER, 9003, 4000, payload=b"answer", options=CLOCK)))
    assert copies.take() == []  # nothing was on the way: the server has something to say
    silent_for(rig, 150)
    rig.run(rig.frame(SERVER, rig.segment(SERVER, 9009, 4000, payload=b"new", options=CLOCK)))
    assert offsets(copies) == [9009]


def test_what_follows_the_first_word_after_a_silence_is_copied(rig: Rig, copies: Copies):
    """It may be a word from before an outage, on a leg that is about to be replaced."""
    silent_for(rig, 400)
    rig.session.held = HELD_MOST
    assert rig.run(rig.frame(MOBILE, rig.segment(MOBILE, 4000, 8500, options=CLOCK))).verdict == REDIRECT
    rig.session.legs[MOBILE].ts_in_at = time.monotonic_ns()
    for number in range(HELD_MOST + 2):
        assert says(rig, 9000 + number, b"x").verdict == REDIRECT
    assert offsets(copies) == [9000 + number for number in range(HELD_MOST)]
    rig.session.woke_ms -= 400
    rig.session.held = 0
    says(rig, 9000 + HELD_MOST + 2, b"x")
    assert copies.take() == []


def test_a_server_that_goes_on_behind_what_was_held_is_not_cut_off(rig: Rig, copies: Copies):
    """Nothing then ever comes from where the leg begins."""
    rig.session.flags = SessionFlag.RESUMABLE | SessionFlag.RESUMING
    rig.session.held = HELD_MOST
    rig.session.mobile_edge = 9004
    fits = rig.segment(SERVER, 9000, 4000, payload=b"more", options=CLOCK)
    assert check(rig, SERVER, fits).verdict == REDIRECT
    beyond = rig.segment(SERVER, 9004, 4000, payload=b"x", options=CLOCK)
    assert check(rig, SERVER, beyond).drops == {"out_of_turn": 1}
    assert copies.take() == []
