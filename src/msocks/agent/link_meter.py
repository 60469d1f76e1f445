"""What each link carries: the most per second of late, and what has gone over it in this month.

The interface's own counters are read, so that headers, repeated segments and other programs count as well, as they do
in a data plan; what went over it while no agent ran does not.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import structlog

from msocks.policy.data_month import month_begins

_log = structlog.get_logger("msocks.agent.link_meter")

_COUNTERS = Path("/proc/net/dev")
_FILE = "usage.json"
_SCHEMA = 1
# What a link could do is forgotten by half in some six minutes.
_KEPT_PER_S = 0.998
# Below this nothing was asked of a link, which says nothing of what it can do.
_LEAST_MBIT = 0.1
_WRITTEN_EVERY_S = 10.0


@dataclass(slots=True)
class _Month:
    begins: date
    used: int = 0


class LinkMeter:
    """See the module. Call `read` about once a second."""

    def __init__(
        self,
        directory: Path,
        *,
        today: Callable[[], date] = date.today,
        counters: Callable[[], Mapping[str, tuple[int, int]]] | None = None,
    ) -> None:
        """
        Args:
            directory: Where months are kept (``usage.json``); made when there is something to be kept.
            today: The local date.
            counters: Bytes received and sent by interface; by default the kernel's.
        """
        self._directory = directory
        self._today = today
        self._counters = counters or read_counters
        self._seen: dict[str, tuple[int, int]] = {}
        self._read_at: float | None = None
        self._rates: dict[str, float] = {}
        self._months: dict[str, _Month] | None = None  # None: not asked for yet
        self._written_at: float | None = None
        self._is_changed = False

    def rate_mbit(self, link: str) -> float | None:
        """The most that a link has carried of late in one direction, in Mbit/s; None where that is nothing."""
        return self._rates.get(link)

    def used(self, link: str) -> int:
        """Bytes in both directions since the month began; 0 for a link that is not metered."""
        month = (self._months or {}).get(link)
        return 0 if month is None else month.used

    def read(self, now: float, metered: Mapping[str, int]) -> None:
        """Read the counters; `metered` has, for each link whose months count, the day on which they begin."""
        seen = self._counters()
        if metered and self._months is None:
            self._months = self._load()
        passed = 0.0 if self._read_at is None else now - self._read_at
        for name, (received, sent) in seen.items():
            before = self._seen.get(name)
            if before is None:
                continue  # what it carried before it was looked at was not this agent's to count
            # A new interface of the old name begins at 0.
            fresh = received < before[0] or sent < before[1]
            down, up = (received, sent) if fresh else (received - before[0], sent - before[1])
            self._note_rate(name, max(down, up), passed)
            if name in metered:
                self._count(name, metered[name], down + up)
        self._seen = dict(seen)
        self._read_at = now
        if self._is_changed and (self._written_at is None or now - self._written_at >= _WRITTEN_EVERY_S):
            self._written_at = now
            self.save()

    def save(self) -> None:
        """Write the months down, whole or not at all."""
        if not self._is_changed or self._months is None:
            return
        self._is_changed = False
        months = {name: {"since": str(month.begins), "bytes": month.used} for name, month in self._months.items()}
        place = self._directory / _FILE
        fresh = place.with_name(f"{_FILE}.new")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.write_text(json.dumps({"schema": _SCHEMA, "links": months}), encoding="utf-8")
            os.replace(fresh, place)  # noqa: PTH105 - both are paths already
        except OSError as error:
            _log.warning(
                "usage_not_kept",
                file=str(place),
                reason=error.strerror,
                remedy="data caps begin anew at the next start; give agent.state a directory that can be written",
            )

    def _note_rate(self, name: str, carried: int, passed_s: float) -> None:
        if passed_s <= 0:
            return
        rate = carried * 8 / 1e6 / passed_s
        best = max(rate, self._rates.get(name, 0.0) * _KEPT_PER_S**passed_s)
        if best >= _LEAST_MBIT:
            self._rates[name] = best
        else:
            self._rates.pop(name, None)

    def _count(self, name: str, cap_day: int, carried: int) -> None:
        assert self._months is not None
        begins = month_begins(self._today(), cap_day)
        month = self._months.get(name)
        if month is None or month.begins != begins:
            month = self._months[name] = _Month(begins)
            self._is_changed = True
        if carried:
            month.used += carried
            self._is_changed = True

    def _load(self) -> dict[str, _Month]:
        place = self._directory / _FILE
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
            return {str(name): _month(value) for name, value in kept["links"].items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            reason = error.strerror or "it cannot be read"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            reason = "it is damaged"
            with contextlib.suppress(OSError):
                place.replace(place.with_name(f"{_FILE}.damaged"))
        _log.warning("usage_unknown", file=str(place), reason=reason, remedy="data caps begin to count anew")
        return {}


def read_counters() -> dict[str, tuple[int, int]]:
    """Bytes received and sent by each interface of this host's network namespace (``/proc/net/dev``, proc(5))."""
    found: dict[str, tuple[int, int]] = {}
    try:
        lines = _COUNTERS.read_text(encoding="utf-8", errors="replace").splitlines()[2:]
    except OSError:
        return found
    for line in lines:
        name, _, figures = line.rpartition(":")
        fields = figures.split()
        found[name.strip()] = int(fields[0]), int(fields[8])
    return found


def _month(value: Any) -> _Month:
    used = value["bytes"]
    if not isinstance(used, int) or isinstance(used, bool) or used < 0:
        raise ValueError("a count of bytes is a whole number")
    return _Month(date.fromisoformat(value["since"]), used)
