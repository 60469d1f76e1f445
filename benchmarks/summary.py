"""From rounds to the figures of a table: medians, extremes, slopes, Markdown. Pure: no input, no output, no clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOST = math.inf
"""The stall of a round whose transfer never came to its end."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of one figure over all rounds. A round that failed counts as infinitely slow."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a figure needs at least one round")

    @property
    def median(self) -> float:
        """The middle value, or the mean of the middle two."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest value."""
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure must not exceed; None is no limit."""

    median: float | None = None
    worst: float | None = None

    def met(self, spread: Spread) -> bool:
        """Whether it is kept."""
        return spread.median <= _limit(self.median) and spread.most <= _limit(self.worst)

    def __str__(self) -> str:
        return f"{_bound(self.median)} / {_bound(self.worst)}"


def _limit(value: float | None) -> float:
    # A lost round is above every limit, and even where only the median has one it is not met by losses alone.
    return math.nextafter(math.inf, 0) if value is None else value


def _bound(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def shown(value: float, digits: int = 0) -> str:
    """A figure for a table; what never came is `lost`."""
    return "lost" if math.isinf(value) else f"{value:,.{digits}f}"


def slope(points: Iterable[tuple[float, float]]) -> float:
    """How much y grows with each x: least squares over (x, y)."""
    xs, ys = zip(*points, strict=True)
    return statistics.linear_regression(xs, ys).slope


def growth(samples: Sequence[float], settled: float = 0.1) -> float:
    """How much higher the last tenth of a series lies than the tenth after its first part, by their medians.

    The first `settled` of the samples do not count: what a program allocates once is no growth.
    """
    rest = samples[int(len(samples) * settled) :]
    tenth = max(1, len(rest) // 10)
    return statistics.median(rest[-tenth:]) - statistics.median(rest[:tenth])


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table whose first columns hold text, and all others figures. Raises ValueError for a row of another width."""
    lines = ["| " + " | ".join(heading) + " |"]
    lines.append("|" + "".join("---|" if index < text_columns else "---:|" for index in range(len(heading))))
    for row in rows:
        if len(row) != len(heading):
            raise ValueError(f"{len(row)} cells under {len(heading)} headings: {row}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)
