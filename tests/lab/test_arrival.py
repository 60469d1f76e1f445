"""Stalls as read from a record of arrivals."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks_lab import ArrivalMeter


def meter_of(start: float, arrivals: list[tuple[float, int]]) -> ArrivalMeter:
    meter = ArrivalMeter(start)
    for at, count in arrivals:
        meter.add(count, at)
    return meter


METER = meter_of(10.0, [(10.5, 100), (10.6, 50), (13.0, 25), (13.1, 25), (14.0, 1)])


def test_the_longest_gap_is_found_with_its_place():
    gap = METER.longest_gap()
    assert (gap.began, gap.ended, gap.offset) == (10.6, 13.0, 150)
    assert gap.seconds == pytest.approx(2.4)


@pytest.mark.parametrize(
    ("since", "until", "began"),
    [(11.0, 99.0, 10.6), (13.05, 99.0, 13.1), (0.0, 10.55, 10.0), (10.7, 12.0, 10.6), (13.0001, 13.05, 13.0)],
)
def test_a_gap_counts_in_whole_where_it_meets_the_span(since: float, until: float, began: float):
    assert METER.longest_gap(since, until).began == began


def test_there_may_be_no_gap():
    with pytest.raises(ValueError, match="empty"):
        METER.longest_gap(since=14.5)


def test_totals_and_times():
    assert METER.total == 201
    assert [METER.total_at(instant) for instant in (9.0, 10.5, 12.0, 13.0, 99.0)] == [0, 100, 150, 175, 201]
    assert [METER.time_of(total) for total in (1, 100, 101, 176, 201)] == [10.5, 10.5, 10.6, 13.1, 14.0]
    assert METER.first_arrival(10.6) == 13.0
    with pytest.raises(ValueError, match="201"):
        METER.time_of(202)
    with pytest.raises(ValueError, match="nothing arrived"):
        METER.first_arrival(14.0)


def test_a_record_survives_its_file(tmp_path: Path):
    METER.save(tmp_path / "record.json")
    loaded = ArrivalMeter.load(tmp_path / "record.json")
    assert (loaded.times, loaded.totals) == (METER.times, METER.totals)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 1000)), min_size=1, max_size=50), st.floats(0, 60))
def test_the_longest_gap_agrees_with_a_walk_over_all(steps: list[tuple[float, int]], since: float):
    now, arrivals = 0.0, []
    for pause, count in steps:
        now += pause
        arrivals.append((now, count))
    meter = meter_of(0.0, arrivals)
    edges = [0.0, *(at for at, _ in arrivals)]
    expected = [b - a for a, b in itertools.pairwise(edges) if b >= since]
    assert [gap.seconds for gap in meter.gaps(since)] == expected
