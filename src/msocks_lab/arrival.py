"""When bytes arrived: the record from which stalls and rates are read."""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without arriving bytes: from the arrival of the byte before `offset` to that of byte `offset`."""

    began: float
    ended: float
    offset: int

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.began


class ArrivalMeter:
    """A record of (seconds of CLOCK_MONOTONIC, bytes received so far), in order of time.

    The first entry is the start of the waiting, with 0 bytes: a stream that never begins has a gap as well.
    """

    def __init__(self, started: float | None = None) -> None:
        self.times: list[float] = [time.monotonic() if started is None else started]
        self.totals: list[int] = [0]

    @property
    def total(self) -> int:
        """Bytes received so far."""
        return self.totals[-1]

    def add(self, count: int, at: float | None = None) -> None:
        """`count` bytes have arrived just now, or at a given time."""
        self.times.append(time.monotonic() if at is None else at)
        self.totals.append(self.totals[-1] + count)

    def gaps(self, since: float = float("-inf"), until: float = float("inf")) -> Iterator[Gap]:
        """Every gap that ended after `since` and began before `until`, in its whole length."""
        for index in range(max(1, bisect_left(self.times, since)), len(self.times)):
            if self.times[index - 1] >= until:
                return
            yield Gap(self.times[index - 1], self.times[index], self.totals[index - 1])

    def longest_gap(self, since: float = float("-inf"), until: float = float("inf")) -> Gap:
        """The longest such gap. Raises ValueError where there is none."""
        return max(self.gaps(since, until), key=lambda gap: gap.seconds)

    def first_arrival(self, after: float) -> float:
        """When the first byte after an instant arrived. Raises ValueError where none did."""
        index = bisect_left(self.times, after)
        while index < len(self.times) and (index == 0 or self.times[index] <= after):
            index += 1
        if index >= len(self.times):
            raise ValueError("nothing arrived after that")
        return self.times[index]

    def total_at(self, instant: float) -> int:
        """Bytes received up to an instant."""
        index = bisect_left(self.times, instant)
        if index < len(self.times) and self.times[index] == instant:
            return self.totals[index]
        return self.totals[index - 1] if index else 0

    def time_of(self, total: int) -> float:
        """When so many bytes had arrived. Raises ValueError where they never did."""
        index = bisect_left(self.totals, total)
        if index >= len(self.totals):
            raise ValueError(f"only {self.total} bytes arrived")
        return self.times[index]

    def save(self, path: Path) -> None:
        """Write the record as JSON: {"schema": 1, "times": [seconds], "totals": [bytes]}."""
        path.write_text(json.dumps({"schema": 1, "times": self.times, "totals": self.totals}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record that `save` has written."""
        data = json.loads(path.read_text())
        meter = cls(data["times"][0])
        meter.times, meter.totals = data["times"], data["totals"]
        return meter
