"""How many times one figure is another, from rounds that measured both, with an interval. Pure: no input, no clock."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 10_000
_SEED = 1  # the page of a set of rounds is always the same


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the rounds' ratios, and its bootstrap interval of 95 %."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} - {self.high:.3f})"


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ratio of two figures; the values at one index come from the same round, so that what slowed both cancels out.

    The interval is the percentile bootstrap over rounds (Efron 1979). Raises ValueError for sequences of different or
    no length.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} rounds do not pair")
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    drawn = random.Random(_SEED)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    low, high = medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES)]
    return Ratio(statistics.median(ratios), low, high)
