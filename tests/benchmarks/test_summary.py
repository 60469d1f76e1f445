"""Medians, targets, slopes and tables."""

from __future__ import annotations

import pytest
from benchmarks.summary import LOST, Spread, Target, growth, markdown_table, shown, slope


class TestSpread:
    def test_an_even_number_of_rounds_has_the_mean_of_the_middle_two(self):
        spread = Spread((4.0, 1.0, 3.0, 2.0))
        assert (spread.median, spread.least, spread.most) == (2.5, 1.0, 4.0)

    def test_a_lost_round_is_the_worst_and_moves_the_median(self):
        spread = Spread((100.0, LOST, 120.0))
        assert spread.median == 120.0
        assert shown(spread.most) == "lost"

    def test_no_rounds_are_no_figure(self):
        with pytest.raises(ValueError, match="at least one round"):
            Spread(())


class TestTarget:
    def test_median_and_worst_both_have_to_be_kept(self):
        target = Target(200, 400)
        assert target.met(Spread((150.0, 200.0, 400.0)))
        assert not target.met(Spread((150.0, 201.0, 300.0)))
        assert not target.met(Spread((150.0, 160.0, 401.0)))

    def test_a_target_for_the_median_alone_allows_any_worst_but_no_loss(self):
        target = Target(250, None)
        assert target.met(Spread((100.0, 200.0, 9000.0)))
        assert not target.met(Spread((100.0, 200.0, LOST)))

    def test_it_is_printed_as_the_cells_beside_it_are(self):
        assert str(Target(250, None)) == "250 / -"


def test_the_slope_of_a_line_with_an_offset_is_its_steepness():
    assert slope([(0, 70_000.0), (500, 72_000.0), (1000, 74_000.0)]) == pytest.approx(4.0)


class TestGrowth:
    def test_what_is_allocated_once_at_the_beginning_is_no_growth(self):
        assert growth([10, *[50] * 99]) == 0

    def test_a_leak_is_seen(self):
        assert growth(list(range(100))) == pytest.approx(81)

    def test_one_peak_is_no_growth(self):
        assert growth([50] * 60 + [500] + [50] * 39) == 0


class TestMarkdownTable:
    def test_text_to_the_left_figures_to_the_right(self):
        assert markdown_table(["", "ms"], [["down", "98"]]).splitlines() == ["|  | ms |", "|---|---:|", "| down | 98 |"]

    def test_a_row_of_another_width_is_refused(self):
        with pytest.raises(ValueError, match="2 cells under 3 headings"):
            markdown_table(["", "a", "b"], [["x", "1"]])
