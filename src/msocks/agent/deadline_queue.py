"""Members that all get the same time, such as connections that have not yet said what they want."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


class DeadlineQueue(Generic[Member]):
    """Since everybody gets the same time, the oldest is always the next: one timer does for all of them.

    A member leaves by `discard`; or it is expired, when its time is over or a newer one needs its place.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, patience_s: float, limit: int, expire: Callable[[Member], None]
    ) -> None:
        """
        Args:
            loop: Gives the time and the timer.
            patience_s: What each member gets, in seconds.
            limit: How many members there are at most.
            expire: Called with a member that has left in this way.
        """
        self._loop = loop
        self._patience_s = patience_s
        self._limit = limit
        self._expire = expire
        self._deadlines: dict[Member, float] = {}  # in the order of the deadlines
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._deadlines)

    def add(self, member: Member) -> None:
        """Give `member` its time; the oldest expires where the limit is exceeded."""
        self._deadlines[member] = self._loop.time() + self._patience_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._on_time)
        if len(self._deadlines) > self._limit:
            oldest = next(iter(self._deadlines))
            del self._deadlines[oldest]
            self._expire(oldest)

    def discard(self, member: Member) -> bool:
        """Take `member` out without expiring it; False where it was not in."""
        return self._deadlines.pop(member, None) is not None

    def clear(self) -> list[Member]:
        """Take all members out without expiring them, and stop the timer."""
        members = list(self._deadlines)
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return members

    def _on_time(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._deadlines:
            oldest, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                # Members that left meanwhile are not worth a timer each; this one woke up for one of them.
                self._timer = self._loop.call_at(deadline, self._on_time)
                return
            del self._deadlines[oldest]
            self._expire(oldest)
