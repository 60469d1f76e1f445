"""Says in the proxy's log what may happen to thousands of sessions at once: seldom."""

from __future__ import annotations

import time

import structlog

_log = structlog.get_logger("msocks.datapath.splice")

_SILENCE_S = 60.0


class RateLimitedLog:
    """One line in a minute for each thing that is in trouble, however many sessions meet it."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._said_at: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def warn(self, what: str, *, reason: str, remedy: str) -> None:
        """A session or a leg has met the trouble with `what`, of which there are few kinds."""
        now = time.monotonic()
        if now - self._said_at.get(what, -_SILENCE_S) < _SILENCE_S:
            self._unsaid[what] = self._unsaid.get(what, 0) + 1
            return
        self._said_at[what] = now
        _log.warning(self._event, what=what, reason=reason, remedy=remedy, unsaid=self._unsaid.pop(what, 0))
