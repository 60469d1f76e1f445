"""Stalls read from a record of arrivals."""

from __future__ import annotations

import pytest
from benchmarks.stalls import WATCHED_S, Moment, RecordTooShort, stalls

from msocks_lab.arrival import ArrivalMeter


def arrivals(*spans: tuple[float, float], every: float = 0.01) -> ArrivalMeter:
    """A record with an arrival each 10 ms within the spans, and none between them."""
    meter = ArrivalMeter(spans[0][0])
    for begin, end in spans:
        for step in range(round((end - begin) / every) + 1):
            meter.add(1000, begin + step * every)
    return meter


def test_the_gap_that_an_event_begins_and_a_longer_one_later():
    [stall] = stalls(arrivals((0.0, 2.0), (2.1, 3.0), (3.15, 6.0)), [Moment("down", 1.999)])
    assert stall.resumed_ms == pytest.approx(100, abs=0.2)
    assert stall.longest_ms == pytest.approx(150, abs=0.2)
    assert list(stall.gaps[0]) == pytest.approx([1.0, 100.0])
    assert list(stall.gaps[1]) == pytest.approx([1001.0, 150.0])


def test_what_was_in_queues_still_arrives_before_the_gap():
    [stall] = stalls(arrivals((0.0, 2.05), (2.3, 6.0)), [Moment("silent", 2.0)])
    assert stall.resumed_ms == pytest.approx(250, abs=0.2)


def test_only_what_comes_after_the_new_link_counts_where_there_was_none():
    [stall] = stalls(arrivals((0.0, 2.0), (7.09, 12.0)), [Moment("gone", 2.0, usable=7.0)])
    assert stall.longest_ms == stall.resumed_ms == pytest.approx(90, abs=0.2)


def test_each_moment_has_its_own_stall():
    meter = arrivals((0.0, 2.0), (2.05, 5.0), (5.2, 9.0))
    first, second = stalls(meter, [Moment("to-lte", 2.0), Moment("to-wifi", 5.0)])
    assert [first.figure, second.figure] == ["to-lte", "to-wifi"]
    assert [first.longest_ms, second.longest_ms] == pytest.approx([50, 200], abs=0.2)


def test_a_gap_before_the_event_does_not_count():
    [stall] = stalls(arrivals((0.0, 1.0), (1.9, 6.0)), [Moment("down", 3.0)])
    assert stall.longest_ms == pytest.approx(10, abs=0.2)


def test_a_transfer_that_ends_too_soon_says_nothing():
    with pytest.raises(RecordTooShort, match="down"):
        stalls(arrivals((0.0, 2.0 + WATCHED_S - 0.1)), [Moment("down", 2.0)])


def test_how_long_it_took_until_256_kb_had_come():
    [stall] = stalls(arrivals((0.0, 2.0), (2.1, 9.0)), [Moment("down", 2.0)])  # 1000 bytes each 10 ms
    assert stall.amount_ms == pytest.approx(100 + 262 * 10, abs=10.1)


def test_the_rate_is_that_of_what_came_half_a_second_later_and_on():
    [stall] = stalls(arrivals((0.0, 2.0), (2.4, 4.4), (4.45, 9.0), every=0.001), [Moment("down", 2.0)])
    assert stall.rate_mbit == pytest.approx(8 * 1.95 / 2, rel=0.01)
