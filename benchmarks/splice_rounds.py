"""The raw rounds of `make bench-splice` and `make bench-agent`, as their pages ask for them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.ratios import Ratio, paired_ratio
from benchmarks.summary import Spread, shown

Figure = Callable[[dict[str, Any]], float]

TITLES = {
    "forwarding": "IP forwarding",
    "beside": "IP forwarding beside MSOCKS",
    "msocks": "MSOCKS",
    "dante": "dante",
    "microsocks": "microsocks",
    "haproxy": "haproxy (no SOCKS)",
}
"""Of all contenders, in the order of tables."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """All entries of a run; `titles` are those of its contenders, in the order of tables."""

    entries: list[dict[str, Any]]
    titles: Mapping[str, str] = field(default_factory=lambda: TITLES)

    def of(self, measurement: str, contender: str) -> list[dict[str, Any]]:
        """Entries that succeeded, in the order of rounds."""
        return [entry for entry in self._all(measurement, contender) if not entry["error"]]

    def _all(self, measurement: str, contender: str) -> list[dict[str, Any]]:
        return [
            entry for entry in self.entries if (entry["measurement"], entry["contender"]) == (measurement, contender)
        ]

    def contenders(self, measurement: str) -> list[str]:
        """Who took part in a measurement, those included that failed."""
        return [name for name in self.titles if self._all(measurement, name)]

    def title(self, measurement: str, contender: str) -> str:
        """A contender's title; it says how many rounds failed."""
        every, good = self._all(measurement, contender), self.of(measurement, contender)
        failed = f" ({len(every) - len(good)} rounds failed)" if len(good) < len(every) else ""
        return self.titles[contender] + failed

    def failures(self, measurement: str) -> list[str]:
        """What the failed rounds said, each once."""
        said = (entry for entry in self.entries if entry["measurement"] == measurement and entry["error"])
        return list(dict.fromkeys(f"{self.titles[entry['contender']]}: {entry['error'].strip()}" for entry in said))

    def spread(self, measurement: str, contender: str, figure: Figure) -> Spread | None:
        """A figure over all rounds that succeeded."""
        values = tuple(figure(entry) for entry in self.of(measurement, contender))
        return Spread(values) if values else None

    def ratio(self, measurement: str, ours: str, theirs: str, figure: Figure) -> Ratio | None:
        """How many times one contender's figure is another's, by the rounds in which both succeeded."""
        mine, other = (
            {entry["round"]: figure(entry) for entry in self.of(measurement, name)} for name in (ours, theirs)
        )
        both = sorted(mine.keys() & other.keys())
        return paired_ratio([mine[number] for number in both], [other[number] for number in both]) if both else None


def cell(spread: Spread | None, digits: int) -> str:
    """*median (least - most)*."""
    if spread is None:
        return "-"
    return f"{shown(spread.median, digits)} ({shown(spread.least, digits)} - {shown(spread.most, digits)})"


def verdict(what: str, value: float, target: float, *, at_most: bool = False, digits: int = 3) -> str:
    """A line that says whether a target is kept."""
    kept = value <= target if at_most else value >= target
    word = "at most" if at_most else "at least"
    return f"- {what}: {value:.{digits}f}; target {word} {target:.2f}, {'kept' if kept else '**not kept**'}."
