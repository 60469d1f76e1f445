"""The plots: well-formed, to scale, and with what they are told."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from benchmarks.bars import Bar, Group, nice_step, svg
from benchmarks.summary import LOST, Spread

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*bars: Bar) -> ElementTree.Element:
    return ElementTree.fromstring(svg("Round <trip>", "us", [Group("IPv4", bars)], digits=1))


def widths(root: ElementTree.Element) -> list[float]:
    return [float(found.attrib["width"]) for found in root.iter(f"{SVG}rect") if "class" in found.attrib]


def test_bars_are_as_long_as_their_medians():
    root = drawn(Bar("one", Spread((10.0, 20.0, 40.0))), Bar("two", Spread((40.0,))))
    short, long = widths(root)
    assert long == pytest.approx(2 * short, abs=0.2)


def test_labels_and_figures_are_in_it_and_text_is_escaped():
    root = drawn(Bar("a & b", Spread((12.34,)), ours=True))
    texts = [found.text for found in root.iter(f"{SVG}text")]
    assert {"IPv4", "a & b", "12.3", "Round <trip>, us"} <= set(texts)
    assert [found.attrib["class"] for found in root.iter(f"{SVG}rect") if "class" in found.attrib] == ["ours"]


def test_a_figure_that_failed_says_so():
    texts = [found.text for found in drawn(Bar("x", Spread((LOST,))), Bar("y", Spread((1.0,)))).iter(f"{SVG}text")]
    assert "failed" in texts


def test_nothing_to_plot_is_refused():
    with pytest.raises(ValueError, match="nothing to plot"):
        svg("Title", "us", [Group("empty", [])])


@pytest.mark.parametrize(("most", "step"), [(36.2, 10), (9.9, 2), (53_800, 20_000), (0.97, 0.2), (5, 1)])
def test_ticks_stand_at_round_numbers(most: float, step: float):
    assert math.isclose(nice_step(most), step)
