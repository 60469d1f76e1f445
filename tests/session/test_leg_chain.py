"""Which leg the next byte comes from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msocks.session.leg_chain import LegChain, Reading, StreamGapError


def nothing(generation: int) -> int:
    return 0


def unread(**counts: int) -> Callable[[int], int]:
    """What is unread in which leg, by name: leg1=50."""
    return lambda generation: counts.get(f"leg{generation}", 0)


def test_the_only_leg_has_no_bound() -> None:
    chain = LegChain()
    assert chain.next_reading() is None
    chain.add(1, 0, nothing)
    assert chain.next_reading() == Reading(1, 0, None)
    assert chain.first_is_last


def test_the_old_leg_is_drained_up_to_what_it_had_received() -> None:
    chain = LegChain()
    chain.add(1, 0, nothing)
    chain.took(100)
    chain.add(2, 100, unread(leg1=50))  # 50 bytes unread in leg 1; the new leg repeats them
    assert chain.exhausted() == []
    assert chain.next_reading() == Reading(1, 0, 50)
    chain.took(50)
    assert chain.exhausted() == [1]
    assert chain.next_reading() == Reading(2, 50, None)
    chain.took(50)
    assert chain.position == 150
    assert chain.next_reading() == Reading(2, 0, None)


def test_bytes_that_the_sender_has_forgotten_come_from_the_old_leg() -> None:
    chain = LegChain()
    chain.add(1, 0, nothing)
    chain.add(2, 70, unread(leg1=70))
    chain.took(70)
    assert chain.exhausted() == [1]
    assert chain.next_reading() == Reading(2, 0, None)


def test_a_gap_is_refused_and_changes_nothing() -> None:
    chain = LegChain()
    chain.add(1, 0, nothing)
    chain.took(10)
    with pytest.raises(StreamGapError):
        chain.add(2, 16, unread(leg1=5))
    assert chain.newest == 1
    assert chain.next_reading() == Reading(1, 0, None)


def test_generations_only_grow() -> None:
    chain = LegChain()
    chain.add(5, 0, nothing)
    with pytest.raises(ValueError, match="does not follow"):
        chain.add(5, 0, nothing)


def test_a_leg_that_ends_before_its_limit_leaves_a_gap() -> None:
    chain = LegChain()
    chain.add(1, 0, nothing)
    chain.add(2, 30, unread(leg1=30))
    chain.took(10)
    gap = chain.gap()
    assert (gap.available, gap.begins_at) == (10, 30)


def test_a_leg_that_hands_over_is_read_until_its_successor_begins() -> None:
    chain = LegChain()
    chain.add(1, 0, nothing)
    chain.took(100)
    assert chain.add(2, 500, nothing, handover=True) == []
    assert chain.next_reading() == Reading(1, 0, 400)
    assert chain.received(unread(leg1=30, leg2=50)) == 130
    assert chain.received(unread(leg1=400, leg2=50)) == 550
    chain.took(400)
    assert chain.exhausted() == [1]
    assert chain.next_reading() == Reading(2, 0, None)


def test_a_takeover_ends_a_handover_that_does_not_come_to_its_end() -> None:
    chain = LegChain()
    chain.add(1, 0, nothing)
    chain.add(2, 500, nothing, handover=True)
    chain.took(100)
    assert chain.add(3, 90, unread(leg1=20, leg2=70)) == [2]
    assert chain.next_reading() == Reading(1, 0, 20)
    assert not chain.handing_over
    chain.took(20)
    assert chain.exhausted() == [1]
    assert chain.next_reading() == Reading(3, 30, None)


def test_a_handover_needs_a_leg_to_hand_over() -> None:
    chain = LegChain()
    with pytest.raises(StreamGapError):
        chain.add(1, 5, nothing, handover=True)


@settings(max_examples=300)
@given(st.data())
def test_whatever_the_legs_every_byte_comes_once(data: st.DataObject) -> None:
    """Legs as byte strings of one stream: some replaced by a takeover, some by a handover, some of which break."""
    stream = bytes(data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=80)))
    chain, out = LegChain(), b""
    queues: dict[int, bytearray] = {}
    ends: dict[
        int, int
    ] = {}  # offset up to which a leg has got bytes; only the newest and one that hands over get more

    def unread(generation: int) -> int:
        return len(queues[generation])

    def deliver(generation: int, until: int) -> None:
        queues[generation] += stream[ends[generation] : until]
        ends[generation] = max(ends[generation], until)

    for generation in range(1, data.draw(st.integers(1, 6)) + 1):
        newest, received = chain.newest, chain.received(unread)
        assert len(out) <= received <= len(stream)
        handover = newest is not None and data.draw(st.booleans())
        begins_at = data.draw(st.integers(max(received, ends[newest]), len(stream)) if handover and newest else
                              st.integers(0, received))  # fmt: skip
        for gone in chain.add(generation, begins_at, unread, handover=handover):
            del queues[gone]
        queues[generation], ends[generation] = bytearray(), begins_at
        if handover and newest is not None:
            deliver(newest, data.draw(st.integers(ends[newest], begins_at)))
        deliver(generation, data.draw(st.integers(begins_at, len(stream))))
        for _ in range(data.draw(st.integers(0, 4))):
            out += _read(chain, queues, data.draw(st.integers(1, 20)))
            assert stream.startswith(out)
    while piece := _read(chain, queues, 1000):
        out += piece
    assert out == stream[: chain.position]
    assert chain.position == chain.received(unread)


def _read(chain: LegChain, queues: dict[int, bytearray], at_most: int) -> bytes:
    while True:
        for generation in chain.exhausted():
            del queues[generation]
        reading = chain.next_reading()
        assert reading is not None
        size = reading.discard or at_most
        if not reading.discard and reading.at_most is not None:
            size = min(size, reading.at_most)
        queue = queues[reading.generation]
        piece = bytes(queue[:size])
        del queue[:size]
        if not piece:
            return b""
        chain.took(len(piece))
        if not reading.discard:
            return piece
