"""What this host has said on a leg and not heard the answer to when its socket vanished: said again until it has.

It is the *reply* to a mobile leg, with what belongs to it: a method selection before, a banner or a FIN behind. It is
small, and gone with the first round trip. Loss is found by the clock (RFC 6298), or sooner, by the peer's speaking of
what came behind. (What is owed to the server is another matter: `owed`.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_LEAST_S = 0.2  # RTO_MIN of Linux
_MOST_S = 8.0
_ATTEMPTS = 8


class Residual:
    """One thing to be said until it is acknowledged."""

    __slots__ = ("_attempts", "_is_acknowledged", "_loop", "_on_over", "_say", "_timeout_s", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        say: Callable[[], None],
        is_acknowledged: Callable[[], bool],
        on_over: Callable[[bool], None],
        *,
        timeout_s: float,
    ) -> None:
        """It was said just now.

        Args:
            loop: Whose clock.
            say: Says it again.
            is_acknowledged: Whether it was heard.
            on_over: Called once with True when it was acknowledged, with False when nobody answers.
            timeout_s: The first retransmission time-out: the round trip and four times its variance.
        """
        self._loop = loop
        self._say = say
        self._is_acknowledged = is_acknowledged
        self._on_over: Callable[[bool], None] | None = on_over
        self._timeout_s = min(_MOST_S, max(_LEAST_S, timeout_s))
        self._attempts = 0
        self._timer: asyncio.TimerHandle | None = loop.call_later(self._timeout_s, self._on_time)

    def again(self) -> None:
        """The peer has shown that it did not get it."""
        if self._on_over is not None and not self._is_acknowledged():
            self._say()

    def cancel(self) -> None:
        """Nobody waits for it any more; `on_over` is not called."""
        self._on_over = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        on_over = self._on_over
        if on_over is None:
            return
        acknowledged = self._is_acknowledged()
        if acknowledged or self._attempts == _ATTEMPTS:
            self._on_over = None
            on_over(acknowledged)
            return
        self._attempts += 1
        self._say()
        self._timeout_s = min(_MOST_S, 2 * self._timeout_s)
        self._timer = self._loop.call_later(self._timeout_s, self._on_time)
