"""What is asked and measured of a path: probes, round-trip times, how densely something arrives on it; sans-IO.

Times are seconds of one monotonic clock, which the caller reads.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_CALM = 4
_CALM_FOR_S = 600.0
_LOOKS = 16
_LOOKS_WITHIN_S = 5.0


@dataclass(slots=True)
class SentProbe:
    """A probe that was not answered yet.

    Attributes:
        sent_at: When.
        over_udp: Or else over the control channel.
        is_cold: Sent after a pause, in which a radio may have gone to sleep.
        is_calm: Sent when nothing had come for a moment.
        counts: Towards silence.
        tells_loss: Sent while the path lived.
        was_overdue: Its deadline has passed.
    """

    sent_at: float
    over_udp: bool
    is_cold: bool
    is_calm: bool
    counts: bool
    tells_loss: bool
    was_overdue: bool = False


class RoundTripTime:
    """Smoothed round-trip time and its variation (RFC 6298 section 2), and what it was of late without a queue.

    Attributes:
        smoothed_s: None before the first sample.
        variation_s: Mean deviation.
    """

    def __init__(self) -> None:
        self.smoothed_s: float | None = None
        self.variation_s = 0.0
        self._calm: deque[float] = deque(maxlen=_CALM)
        self._calm_most = math.inf
        self._calm_at = -math.inf

    def sample(self, now: float, rtt_s: float, *, calm: bool) -> None:
        """Take one measurement into account; `calm`: nothing had arrived for a moment when the question was sent."""
        if calm:
            self._calm.append(rtt_s)
            self._calm_most, self._calm_at = max(self._calm), now
        if self.smoothed_s is None:
            self.smoothed_s = rtt_s
            self.variation_s = rtt_s / 2
        else:
            self.variation_s += (abs(self.smoothed_s - rtt_s) - self.variation_s) / 4
            self.smoothed_s += (rtt_s - self.smoothed_s) / 8

    def calm_s(self, now: float) -> float:
        """The most of the last calm samples, which were behind no traffic of this host; infinity if unknown."""
        return self._calm_most if self._calm_at > now - _CALM_FOR_S else math.inf


class Arrivals:
    """How long the pauses are between what arrives, as far as looks at the path now and then can tell."""

    def __init__(self) -> None:
        self._looked_at = -math.inf
        self._heard_at = -math.inf
        self._pauses: deque[tuple[float, float]] = deque(maxlen=_LOOKS)  # when it had lasted so long, at least
        self._longest_s = math.inf

    def look(self, now: float, heard_at: float) -> None:
        """At this moment the last arrival was that of `heard_at`. A pause counts when it is over."""
        if heard_at > self._looked_at:  # clearly: the kernel tells of it in steps of some milliseconds
            if self._looked_at > -math.inf:
                self._pauses.append((self._looked_at, self._looked_at - self._heard_at))
                self._longest_s = max(pause_s for _, pause_s in self._pauses)
            self._heard_at = heard_at
        self._looked_at = now

    def longest_pause_s(self, now: float) -> float:
        """The longest pause of the last 5 s; infinity where there were too few looks to tell."""
        if len(self._pauses) < _LOOKS or self._pauses[0][0] < now - _LOOKS_WITHIN_S:
            return math.inf
        return self._longest_s
