"""Ratios of figures that were measured in the same rounds."""

from __future__ import annotations

import pytest
from benchmarks.ratios import paired_ratio


def test_what_slows_both_in_a_round_cancels_out():
    ratio = paired_ratio([9.6, 19.2, 28.8], [10.0, 20.0, 30.0])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((0.96, 0.96, 0.96))


def test_the_interval_lies_within_the_rounds_and_around_the_median():
    ours = [0.90, 0.94, 0.95, 0.96, 0.97, 0.99, 1.30]
    ratio = paired_ratio(ours, [1.0] * 7)
    assert ratio.median == 0.96
    assert 0.90 <= ratio.low < 0.96 < ratio.high <= 1.30


def test_more_rounds_of_the_same_spread_narrow_it():
    few, many = [0.9, 0.95, 1.0, 1.05], [0.9, 0.95, 1.0, 1.05] * 20
    wide, narrow = paired_ratio(few, [1.0] * 4), paired_ratio(many, [1.0] * 80)
    assert narrow.high - narrow.low < wide.high - wide.low


def test_it_is_the_same_each_time():
    assert paired_ratio([1.0, 2.0, 4.0], [1.0] * 3) == paired_ratio([1.0, 2.0, 4.0], [1.0] * 3)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_that_do_not_pair_are_refused(ours: list[float], theirs: list[float]):
    with pytest.raises(ValueError, match="do not pair"):
        paired_ratio(ours, theirs)


def test_it_is_printed_with_its_interval():
    assert str(paired_ratio([0.96], [1.0])) == "0.960 (0.960 - 0.960)"
