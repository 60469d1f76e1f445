from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.protocol.replay import Freshness, ReplayWindow


class Reference:
    """The same rule said with a set."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken: set[int] = set()

    def commit(self, number: int) -> Freshness:
        if self.taken and number <= max(self.taken) - self.size:
            return Freshness.TOO_OLD
        if number in self.taken:
            return Freshness.REPLAYED
        self.taken.add(number)
        return Freshness.FRESH


@given(st.integers(1, 20), st.lists(st.integers(0, 50) | st.integers(0, 2**64 - 1), max_size=60))
def test_the_window_takes_each_number_once(size: int, numbers: list[int]):
    window, reference = ReplayWindow(size), Reference(size)
    for number in numbers:
        verdict = window.check(number)
        assert verdict is window.check(number)
        assert window.commit(number) is verdict is reference.commit(number)


def test_a_check_changes_nothing():
    window = ReplayWindow()
    assert window.check(10_000) is Freshness.FRESH
    assert window.commit(1) is Freshness.FRESH


def test_the_first_number_may_be_zero():
    window = ReplayWindow()
    assert window.commit(0) is Freshness.FRESH
    assert window.commit(0) is Freshness.REPLAYED


def test_legs_that_race_are_taken_in_any_order():
    window = ReplayWindow()
    for number in range(4095, -1, -1):
        assert window.commit(number) is Freshness.FRESH
    for number in range(4096):
        assert window.commit(number) is Freshness.REPLAYED


@pytest.mark.parametrize("number", [-1, 2**64])
def test_numbers_have_64_bits(number):
    with pytest.raises(ValueError, match="leg number"):
        ReplayWindow().check(number)


def test_a_window_has_a_size():
    with pytest.raises(ValueError, match="at least one"):
        ReplayWindow(0)


def test_vectors(vectors):
    window = ReplayWindow()
    for case in vectors("replay.json"):
        assert window.commit(case["number"]).name == case["verdict"], case
