"""What a path loses of what is sent over it, by its probes and by the legs' own retransmissions; sans-IO.

Probes are few and go both ways; a leg that sends tells more, of the way up alone. The worse of both counts.
"""

from __future__ import annotations

import math

_PROBES = 32
"""The last so many weigh most."""
_SEGMENTS = 1000
_SEGMENT_BYTES = 1400
_NONE, _MOST = 0.001, 0.5


class PathLoss:
    """See the module. Both are moving averages, from 0 to 1; 0 as long as nothing is known."""

    __slots__ = ("_legs", "_probes")

    def __init__(self) -> None:
        self._probes = 0.0
        self._legs = 0.0

    @property
    def share(self) -> float:
        """Of what is sent, what is lost."""
        return max(self._probes, self._legs)

    def misses(self, chance: float) -> int:
        """How many losses in a row happen less often than by `chance`, if each is independent of the others."""
        return 1 if self.share < _NONE else math.ceil(math.log(chance) / math.log(min(self.share, _MOST)))

    def on_probe(self, *, lost: bool) -> None:
        """A probe that was sent while the path lived was answered, or not."""
        self._probes += (lost - self._probes) / _PROBES

    def on_sent(self, sent: int, again: int) -> None:
        """A leg has sent `sent` bytes, `again` of them not for the first time (TCP_INFO, tcp(7))."""
        if sent > 0:
            weight = 1.0 - (1.0 - 1.0 / _SEGMENTS) ** (sent / _SEGMENT_BYTES)
            self._legs += (min(1.0, max(0.0, again / sent)) - self._legs) * weight
