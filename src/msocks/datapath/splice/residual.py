"""What this host has said on a leg and not heard the answer to when its socket vanished: said again until it has.

It is the *reply* to a mobile leg, with what belongs to it: a method selection before, a banner or a FIN behind. It is
small, and gone with the first round trip. Loss is found by the clock (RFC 6298), or sooner, by the peer's speaking of
what came behind. (What is owed to the server is another matter: `owed`.)
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Protocol

LEAST_S = 0.2
"""RTO_MIN of Linux."""
_MOST_S = 8.0
_ATTEMPTS = 8
# Being late by this much is allowed, so that the timer does not fire for every single one.
_SLACK_S = 0.005


class Timed(Protocol):
    """What waits for its time."""

    def on_time(self) -> float | None:
        """It is time; after how many seconds it is again, None where it is over."""


class Residual:
    """One thing to be said until it is acknowledged."""

    __slots__ = ("_attempts", "_is_acknowledged", "_on_over", "_say", "_timeout_s")

    def __init__(
        self,
        clock: ResidualClock,
        say: Callable[[], None],
        is_acknowledged: Callable[[], bool],
        on_over: Callable[[Residual], None],
        *,
        timeout_s: float,
    ) -> None:
        """It was said just now.

        Args:
            clock: Tells when it is time to say it again.
            say: Says it again.
            is_acknowledged: Whether it was heard.
            on_over: Called once with this when it was acknowledged, or nobody answers.
            timeout_s: The first retransmission time-out: the round trip and four times its variance.
        """
        self._say: Callable[[], None] | None = say
        self._is_acknowledged: Callable[[], bool] | None = is_acknowledged
        self._on_over: Callable[[Residual], None] | None = on_over
        self._timeout_s = min(_MOST_S, max(LEAST_S, timeout_s))
        self._attempts = 0
        clock.wake(self, self._timeout_s)

    def cancel(self) -> None:
        """Nobody waits for it any more; `on_over` is not called."""
        # The clock holds this object for a while yet, but none of what it stood for.
        self._say = self._is_acknowledged = self._on_over = None

    def on_time(self) -> float | None:
        say, is_acknowledged, on_over = self._say, self._is_acknowledged, self._on_over
        if say is None or is_acknowledged is None or on_over is None:
            return None
        if self._attempts == _ATTEMPTS or is_acknowledged():
            self.cancel()
            on_over(self)
            return None
        self._attempts += 1
        say()
        self._timeout_s = min(_MOST_S, 2 * self._timeout_s)
        return self._timeout_s


class ResidualClock:
    """One timer for all residuals: thousands of connections a second have one each, and hardly any needs its time.

    What waits for the first time waits equally long, nearly always, and nearly always in vain: it is kept so that it
    can be let go of at once, while its memory is still in the processor's cache.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._new: dict[Timed, float] = {}  # when each is due, in this order
        self._waiting: list[tuple[float, int, Timed]] = []  # a heap
        self._count = 0  # of those that were ever added: a tie decides who came first
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # of the timer

    def wake_first(self, residual: Timed) -> None:
        """Call `residual.on_time` after the least time-out, unless it is let go of before."""
        due = self._loop.time() + LEAST_S
        self._new[residual] = due
        if self._timer is None or due < self._due:
            self._arm(due)

    def let_go(self, residual: Timed) -> None:
        """The opposite of `wake_first`; no-op where that is over."""
        self._new.pop(residual, None)

    def wake(self, residual: Timed, after_s: float) -> None:
        """Call `residual.on_time` then."""
        due = self._loop.time() + after_s
        self._count += 1
        heapq.heappush(self._waiting, (due, self._count, residual))
        if self._timer is None or due < self._due:
            self._arm(due)

    def close(self) -> None:
        """Nothing is said again."""
        self._new.clear()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._run)

    def _run(self) -> None:
        self._timer = None
        new, waiting, now = self._new, self._waiting, self._loop.time()
        try:
            while new:
                residual, due = next(iter(new.items()))
                if due > now:
                    break
                del new[residual]
                self._call(residual, now)
            while waiting and waiting[0][0] <= now:
                self._call(heapq.heappop(waiting)[2], now)
        finally:
            if waiting or new:
                due = min(waiting[0][0] if waiting else math.inf, next(iter(new.values()), math.inf))
                self._arm(max(due, now + _SLACK_S))

    def _call(self, residual: Timed, now: float) -> None:
        after_s = residual.on_time()
        if after_s is not None:
            self._count += 1
            heapq.heappush(self._waiting, (now + after_s, self._count, residual))
