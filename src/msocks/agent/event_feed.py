"""What happens to the flows, told to whoever listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# A listener that lags by more misses the rest, and is told how much.
_MOST_WAITING = 1024


class FlowEventKind(StrEnum):
    """What happened."""

    OPENED = "opened"
    """A program asked for a connection."""
    CARRIED = "carried"
    """A leg stands: the first one or another."""
    PARKED = "parked"
    """The leg is gone; the flow waits for another."""
    ENDED = "ended"
    """It is over."""
    MISSED = "missed"
    """The listener was too slow: `details` has how many events it missed."""


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """One event.

    Attributes:
        kind: What happened.
        details: What belongs to it; values that JSON can carry.
        at: When, in seconds since the epoch.
    """

    kind: FlowEventKind
    details: dict[str, Any]
    at: float = field(default_factory=time.time)


class _Listener:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[FlowEvent | None] = asyncio.Queue()
        self.missed = 0


class EventFeed:
    """Any number of listeners; each holds at most 1,024 events that it has not taken."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()

    @property
    def heard(self) -> bool:
        """Whether anybody listens: if not, an event need not be put together."""
        return bool(self._listeners)

    def publish(self, event: FlowEvent) -> None:
        """Tell all listeners."""
        for listener in self._listeners:
            if listener.queue.qsize() >= _MOST_WAITING:
                listener.missed += 1
                continue
            if listener.missed:
                listener.queue.put_nowait(FlowEvent(FlowEventKind.MISSED, {"events": listener.missed}))
                listener.missed = 0
            listener.queue.put_nowait(event)

    def close(self) -> None:
        """Every listener's iteration ends, after what waits."""
        for listener in self._listeners:
            listener.queue.put_nowait(None)

    async def listen(self) -> AsyncGenerator[FlowEvent, None]:
        """Every event from now on, until `close`. Listening begins when the iteration does."""
        listener = _Listener()
        self._listeners.add(listener)
        try:
            while (event := await listener.queue.get()) is not None:
                yield event
        finally:
            self._listeners.discard(listener)
