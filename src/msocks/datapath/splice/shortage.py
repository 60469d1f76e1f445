"""Says in the proxy's log that there is no room for more spliced sessions: seldom, and with what to do."""

from __future__ import annotations

import time

import structlog

_log = structlog.get_logger("msocks.datapath.splice")

_SILENCE_S = 60.0


class Shortage:
    """One line in a minute for each thing that is short, however many sessions are relayed for it."""

    def __init__(self) -> None:
        self._said_at: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def report(self, what: str, reason: str, remedy: str) -> None:
        """A session or a leg has met the shortage of `what`."""
        now = time.monotonic()
        if now - self._said_at.get(what, -_SILENCE_S) < _SILENCE_S:
            self._unsaid[what] = self._unsaid.get(what, 0) + 1
            return
        self._said_at[what] = now
        _log.warning("no_room", what=what, reason=reason, remedy=remedy, unsaid=self._unsaid.pop(what, 0))
