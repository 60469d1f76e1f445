"""Which leg the next byte comes from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msocks.session.leg_chain import LegChain, Reading, StreamGapError


def test_the_only_leg_has_no_bound() -> None:
    chain = LegChain()
    assert chain.next_reading() is None
    chain.add(1, 0, 0)
    assert chain.next_reading() == Reading(1, 0, None)
    assert chain.first_is_last


def test_the_old_leg_is_drained_up_to_what_it_had_received() -> None:
    chain = LegChain()
    chain.add(1, 0, 0)
    chain.took(100)
    chain.add(2, 100, 50)  # 50 bytes unread in leg 1; the new leg repeats them
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
    chain.add(1, 0, 0)
    chain.add(2, 70, 70)
    chain.took(70)
    assert chain.exhausted() == [1]
    assert chain.next_reading() == Reading(2, 0, None)


def test_a_gap_is_refused_and_changes_nothing() -> None:
    chain = LegChain()
    chain.add(1, 0, 0)
    chain.took(10)
    with pytest.raises(StreamGapError):
        chain.add(2, 16, 5)
    assert chain.newest == 1
    assert chain.next_reading() == Reading(1, 0, None)


def test_generations_only_grow() -> None:
    chain = LegChain()
    chain.add(5, 0, 0)
    with pytest.raises(ValueError, match="does not follow"):
        chain.add(5, 0, 0)


def test_a_leg_that_ends_before_its_limit_leaves_a_gap() -> None:
    chain = LegChain()
    chain.add(1, 0, 0)
    chain.add(2, 30, 30)
    chain.took(10)
    gap = chain.gap()
    assert (gap.available, gap.begins_at) == (10, 30)


@settings(max_examples=300)
@given(st.data())
def test_whatever_the_legs_every_byte_comes_once(data: st.DataObject) -> None:
    """Legs as byte strings of one stream; the sender begins each at an offset that the reader can bridge."""
    stream = bytes(data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=80)))
    chain, out = LegChain(), b""
    queues: dict[int, bytearray] = {}
    supplied = 0  # the stream's bytes that some leg has delivered to the kernel
    for generation in range(1, data.draw(st.integers(1, 6)) + 1):
        newest = chain.newest
        unread = len(queues[newest]) if newest is not None else 0
        received = chain.received(unread)
        assert len(out) <= received <= supplied
        begins_at = data.draw(st.integers(0, received))
        chain.add(generation, begins_at, unread)
        until = data.draw(st.integers(begins_at, len(stream)))
        queues[generation] = bytearray(stream[begins_at:until])
        supplied = max(supplied, until)
        for _ in range(data.draw(st.integers(0, 4))):
            out += _read(chain, queues, data.draw(st.integers(1, 20)))
            assert stream.startswith(out)
    last = chain.newest
    assert last is not None
    while piece := _read(chain, queues, 1000):
        out += piece
    assert out == stream[: chain.position]
    assert chain.position == chain.received(0)


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
