"""Many deadlines of the same length on one timer.

As all members wait equally long, the order in which they came is the order in which they are due: adding and removing
cost a dictionary entry, and the loop has one timer however many members there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

# Being late by this much is allowed, so that the timer does not fire for every single member.
_SLACK = 0.05


class Deadlines(Generic[T]):
    """Calls `on_due` with each member that was not discarded within `after_s` seconds (and at most 5 % more).

    Members are compared as dictionary keys. A member that is due is no member any more when `on_due` gets it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        after_s: float,
        on_due: Callable[[T], None],
        *,
        limit: int | None = None,
    ) -> None:
        """`limit`: how many members there are at most; where one more comes, the oldest is due at once."""
        self._loop = loop
        self._limit = limit
        self._after_s = after_s
        self._on_due = on_due
        self._due_at: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due_at)

    def __iter__(self) -> Iterator[T]:
        """Oldest first."""
        return iter(self._due_at)

    def __contains__(self, member: T) -> bool:
        return member in self._due_at

    def add(self, member: T) -> None:
        """Start the wait of `member`, anew if it is waiting."""
        self._due_at.pop(member, None)
        self._due_at[member] = self._loop.time() + self._after_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._after_s, self._run)
        if self._limit is not None and len(self._due_at) > self._limit:
            oldest = next(iter(self._due_at))
            del self._due_at[oldest]
            self._on_due(oldest)

    def discard(self, member: T) -> bool:
        """End the wait of `member`; whether it was waiting."""
        return self._due_at.pop(member, None) is not None

    def oldest(self) -> T | None:
        """The member that is due first."""
        return next(iter(self._due_at), None)

    def take_all(self) -> list[T]:
        """End all waits; returns the members, oldest first."""
        members = list(self._due_at)
        self._due_at.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return members

    def _run(self) -> None:
        now = self._loop.time()
        try:
            while self._due_at:
                member, due_at = next(iter(self._due_at.items()))
                if due_at > now:
                    break
                del self._due_at[member]
                self._on_due(member)
        finally:
            self._timer = None
            if self._due_at:
                wait = next(iter(self._due_at.values())) - now + self._after_s * _SLACK
                self._timer = self._loop.call_later(wait, self._run)
