"""How many bytes may be held in all, by many who hold some; sans-IO.

Whoever writes into a leg keeps the bytes until the peer has ACKed them, and a session whose leg is gone keeps them for
hours. What one session may hold is bounded by itself; a budget bounds what all of them hold together. At the limit
nobody is cut off: a session that already holds its share reads no more from its source, and TCP's flow control carries
that back to whoever sends. The share that each may hold in any case keeps the others' full buffers, those of parked
sessions above all, from bringing a live one to a standstill.
"""

from __future__ import annotations

SHARE_BYTES = 16 * 1024
"""What each holder may hold whatever the others do: `limit` is exceeded by at most that for each of them."""


class ByteBudget:
    """Bytes held, out of a limit; with `within`, they count in that budget as well, and both limits hold."""

    __slots__ = ("_within", "held", "limit")

    def __init__(self, limit: int, within: ByteBudget | None = None) -> None:
        """`limit` in bytes, at least 1."""
        if limit < 1:
            raise ValueError(f"a budget of {limit} bytes")
        self.limit = limit
        self.held = 0
        self._within = within

    @property
    def left(self) -> int:
        """Bytes that may still be taken; 0 where the limit is reached or, by the holders' shares, exceeded."""
        left = max(0, self.limit - self.held)
        return left if self._within is None else min(left, self._within.left)

    def room_for(self, holder_has: int) -> int:
        """How much more one who holds `holder_has` bytes may take now."""
        return max(self.left, SHARE_BYTES - holder_has)

    def take(self, count: int) -> None:
        """`count` bytes more are held. Not refused: ask before."""
        self.held += count
        if self._within is not None:
            self._within.take(count)

    def give_back(self, count: int) -> None:
        """`count` bytes less are held."""
        self.held -= count
        if self._within is not None:
            self._within.give_back(count)
