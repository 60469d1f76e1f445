"""A plot of figures against a quantity."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from benchmarks.curves import Axis, Series, svg
from benchmarks.summary import Spread


def drawn(*series: Series) -> ET.Element:
    return ET.fromstring(svg("Stall", "outage, s", "ms", series))


def circles(plot: ET.Element) -> list[tuple[float, float]]:
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in plot.iter() if c.tag.endswith("circle")]


def test_a_decade_is_as_wide_as_the_next():
    axis = Axis(1, 100, 0, 200)
    assert [axis.at(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])
    assert axis.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert (axis.at(0.1), axis.at(math.inf)) == pytest.approx((0, 200))


def test_each_series_has_its_line_and_its_name():
    mine = Series("MSOCKS", {1.0: Spread((90, 100, 110)), 10.0: Spread((100,))}, ours=True)
    plot = drawn(mine, Series("MPTCP", {1.0: Spread((1000,)), 10.0: Spread((math.inf,))}))
    (_, low), (_, same), (left, high), (right, never) = circles(plot)
    assert low == pytest.approx(same)
    assert never < high < low
    assert left < right
    texts = [element.text for element in plot.iter()]
    assert {"MSOCKS", "MPTCP"} <= set(texts)


def test_one_length_is_no_curve():
    with pytest.raises(ValueError, match="nothing to plot"):
        drawn(Series("MSOCKS", {1.0: Spread((90,))}))
