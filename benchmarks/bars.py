"""A plot of figures with their spread, as SVG: one horizontal bar each, its median, and a whisker over all rounds.

Pure: numbers in, text out. Written by hand, so that a plot is small and a change of it can be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.summary import Spread

_WIDTH = 760
_LEFT = 210  # of the axis: the labels stand there
_RIGHT = 80  # of the longest bar: its figure stands there
_ROW, _BAR = 24, 15
_TOP, _GAP, _BOTTOM = 44, 30, 34
_TICKS = 5
_STYLE = """\
  text { font: 12px sans-serif; fill: #24292f; }
  .title { font-size: 14px; font-weight: bold; }
  .group { font-weight: bold; }
  .label { text-anchor: end; }
  .tick { text-anchor: middle; fill: #57606a; }
  .grid { stroke: #d0d7de; }
  .bar { fill: #8c959f; }
  .ours { fill: #0969da; }
  .whisker { stroke: #24292f; stroke-width: 1.5; }"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure; `ours` sets it off from the others."""

    label: str
    spread: Spread
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Bars with a heading."""

    title: str
    bars: Sequence[Bar]


def nice_step(most: float) -> float:
    """The distance of ticks, 1, 2 or 5 times a power of ten, so that about five of them reach `most`."""
    raw = most / _TICKS
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)


def svg(title: str, unit: str, groups: Sequence[Group], *, digits: int = 1) -> str:
    """The plot. Raises ValueError where there is no figure above zero."""
    values = [value for group in groups for bar in group.bars for value in bar.spread.values if math.isfinite(value)]
    most = max(values, default=0.0)
    if most <= 0:
        raise ValueError("nothing to plot")
    step = nice_step(most)
    scale = (_WIDTH - _LEFT - _RIGHT) / most

    def x(value: float) -> str:
        return f"{_LEFT + min(value, most) * scale:.1f}"

    marks, y = [], float(_TOP)
    for group in groups:
        if not group.bars:
            continue
        marks.append(f'<text class="group" x="{_LEFT}" y="{y + 4:.0f}">{escape(group.title)}</text>')
        y += 12
        for bar in group.bars:
            marks += _bar(bar, x, y, digits)
            y += _ROW
        y += _GAP
    bottom = y - _GAP
    axis = []
    for index in range(int(most / step) + 1):
        at = x(index * step)
        axis.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP - 12}" y2="{bottom:.0f}"/>')
        axis.append(f'<text class="tick" x="{at}" y="{bottom + 16:.0f}">{index * step:g}</text>')
    height = bottom + _BOTTOM
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        f'<text class="title" x="12" y="20">{escape(title)}, {escape(unit)}</text>',
        *axis,
        *marks,
        "</svg>",
        "",
    ])  # fmt: skip


def _bar(bar: Bar, x: Callable[[float], str], y: float, digits: int) -> list[str]:
    """One bar with label, whisker and figure."""
    middle, baseline = y + _BAR / 2, y + _BAR - 3
    median, least, most = bar.spread.median, bar.spread.least, bar.spread.most
    width = float(x(median)) - _LEFT
    kind = "ours" if bar.ours else "bar"
    figure = f"{median:,.{digits}f}" if math.isfinite(median) else "failed"
    return [
        f'<text class="label" x="{_LEFT - 8}" y="{baseline:.1f}">{escape(bar.label)}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}"/>',
        f'<line class="whisker" x1="{x(least)}" x2="{x(most)}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
        f'<text x="{float(x(most)) + 6:.1f}" y="{baseline:.1f}">{figure}</text>',
    ]
