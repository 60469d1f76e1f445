"""A plot of figures against a quantity, as SVG: a line of medians for each series, and a whisker over all rounds.

Both axes are logarithmic. Pure: numbers in, text out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.summary import Spread

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 44, 56
_COLOURS = ("#8c959f", "#bf8700", "#8250df", "#1a7f37")
_OURS = "#0969da"
_STYLE = """\
  text { font: 12px sans-serif; fill: #24292f; }
  .title { font-size: 14px; font-weight: bold; }
  .tick { fill: #57606a; }
  .middle { text-anchor: middle; }
  .end { text-anchor: end; }
  .grid { stroke: #d0d7de; }
  .line { fill: none; stroke-width: 2; }
  .whisker { stroke-width: 1.5; }"""


@dataclass(frozen=True, slots=True)
class Series:
    """Figures by the quantity that they depend on, which is above 0; `ours` sets it off from the others."""

    label: str
    points: Mapping[float, Spread]
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """From the least to the most of what is shown, in pixels."""

    least: float
    most: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        """Where a value stands; what is beyond the axis stands at its end."""
        inside = min(max(value, self.least), self.most)
        part = math.log(inside / self.least) / math.log(self.most / self.least)
        return self.begin + part * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten on it."""
        powers = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
        found = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        return [tick for tick in found if self.least * 0.999 <= tick <= self.most * 1.001]


def svg(title: str, across: str, up: str, series: Sequence[Series]) -> str:
    """The plot; `across` and `up` name the axes. What never came stands at the upper end.

    Raises ValueError where there are not two values across, and one figure.
    """
    places = sorted({place for each in series for place in each.points})
    values = [v for each in series for s in each.points.values() for v in s.values if math.isfinite(v)]
    if len(places) < 2 or not values:
        raise ValueError("nothing to plot")
    lowest = 10.0 ** math.floor(math.log10(max(1.0, min(values))))
    highest = 10.0 ** (math.floor(math.log10(max(values))) + 1)
    x = Axis(places[0], places[-1], _LEFT, _WIDTH - _RIGHT)
    y = Axis(lowest, highest, _HEIGHT - _BOTTOM, _TOP)
    marks = []
    for place in places:
        at = f"{x.at(place):.1f}"
        marks.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        marks.append(f'<text class="tick middle" x="{at}" y="{_HEIGHT - _BOTTOM + 18}">{place:g}</text>')
    for tick in y.ticks():
        at = f"{y.at(tick):.1f}"
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        marks.append(f'<text class="tick end" x="{_LEFT - 8}" y="{float(at) + 4:.1f}">{tick:g}</text>')
    colours = iter(_COLOURS)
    for number, each in enumerate(series):
        marks += _line(each, x, y, _OURS if each.ours else next(colours), _TOP + 16.0 * number)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text class="title" x="12" y="20">{escape(title)}, {escape(up)}</text>',
        f'<text class="middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 14}">{escape(across)}</text>',
        *marks,
        "</svg>",
        "",
    ])  # fmt: skip


def _line(series: Series, x: Axis, y: Axis, colour: str, legend: float) -> list[str]:
    """A series: line, points, whiskers, and its name beside the plot."""
    points = sorted(series.points.items())
    path = " ".join(f"{x.at(place):.1f},{y.at(spread.median):.1f}" for place, spread in points)
    marks = [f'<polyline class="line" stroke="{colour}" points="{path}"/>']
    for place, spread in points:
        at = f"{x.at(place):.1f}"
        low, middle, high = (f"{y.at(value):.1f}" for value in (spread.least, spread.median, spread.most))
        marks.append(f'<circle cx="{at}" cy="{middle}" r="3.5" fill="{colour}"/>')
        marks.append(f'<line class="whisker" stroke="{colour}" x1="{at}" x2="{at}" y1="{low}" y2="{high}"/>')
    left = _WIDTH - _RIGHT + 16
    marks.append(f'<line class="line" stroke="{colour}" x1="{left}" x2="{left + 18}" y1="{legend}" y2="{legend}"/>')
    marks.append(f'<text x="{left + 24}" y="{legend + 4:.1f}">{escape(series.label)}</text>')
    return marks
