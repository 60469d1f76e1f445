"""The sliding window that refuses a leg number which was seen before (after RFC 4303 section 3.4.3).

Legs race over links of different delay, so numbers arrive out of order; each is taken once.
"""

from __future__ import annotations

from enum import Enum

from msocks.protocol.fields import MAX_U64, check_range

WINDOW_NUMBERS = 4096


class Freshness(Enum):
    """What the window says of a number."""

    FRESH = "not seen before"
    REPLAYED = "seen before"
    TOO_OLD = "too far behind the highest number seen"


class ReplayWindow:
    """Remembers which of the last `size` numbers below and including the highest one were taken.

    Memory is `size` bits. `check` changes nothing, so that it can come before the authentication; `commit` comes only
    after it, so that nobody without the key can move the window.
    """

    __slots__ = ("_highest", "_mask", "_seen", "_size")

    def __init__(self, size: int = WINDOW_NUMBERS) -> None:
        if size < 1:
            raise ValueError(f"a replay window has at least one number, not {size}")
        self._size = size
        self._mask = (1 << size) - 1
        self._highest = -1
        self._seen = 0  # bit i stands for the number highest - i

    def check(self, number: int) -> Freshness:
        """Tell whether `number`, an unsigned 64-bit number, may be taken. The window does not change."""
        check_range(number, MAX_U64, "a leg number")
        behind = self._highest - number
        if behind < 0:
            return Freshness.FRESH
        if behind >= self._size:
            return Freshness.TOO_OLD
        return Freshness.REPLAYED if self._seen >> behind & 1 else Freshness.FRESH

    def commit(self, number: int) -> Freshness:
        """Take `number` if it is fresh, and tell what it was before."""
        freshness = self.check(number)
        if freshness is Freshness.FRESH:
            ahead = number - self._highest
            if ahead > 0:
                # Shifting by a peer's number would cost memory in proportion to it.
                self._seen = (self._seen << ahead & self._mask) | 1 if ahead < self._size else 1
                self._highest = number
            else:
                self._seen |= 1 << -ahead
        return freshness
