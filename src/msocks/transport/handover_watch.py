"""Finds the handover that does not come to its end: an old leg that delivers nothing for a while."""

from __future__ import annotations

from collections.abc import Callable

from msocks.transport.reactor import Reactor

_PATIENCE_S = 1.0


class HandoverWatch:
    """Looks, now and then, whether replaced legs deliver.

    Args:
        reactor: Keeps the time.
        progress: Grows with every byte that a replaced leg delivers, in either direction; None where none has to.
        broken: Called where nothing comes of it.
    """

    def __init__(self, reactor: Reactor, progress: Callable[[], int | None], broken: Callable[[], None]) -> None:
        self._reactor = reactor
        self._progress = progress
        self._broken = broken
        self._seen = 0
        self._armed = False

    def begin(self) -> None:
        """A handover has begun."""
        if not self._armed:
            self._seen = 0
            self._arm()

    def _arm(self) -> None:
        self._armed = True
        self._reactor.loop.call_later(_PATIENCE_S, self._look)

    def _look(self) -> None:
        self._armed = False
        before, now = self._seen, self._progress()
        if now is None:
            return
        if now == before:
            self._broken()
        else:
            self._seen = now
            self._arm()
