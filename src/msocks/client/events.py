"""What happens to a connection, for programs that want to know."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from msocks.errors import MsocksError
from msocks.session.mobile_effects import Carried, MoveCause

_KEPT = 64


@dataclass(frozen=True, slots=True)
class Moved:
    """The connection runs over another leg; `from_link` equals `to_link` where the link stayed the same."""

    from_link: str
    to_link: str
    cause: MoveCause


@dataclass(frozen=True, slots=True)
class Parked:
    """No leg stands: bytes wait."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A leg stands again, after Parked. A Moved comes before."""

    link: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is over; `error` is None after an orderly end. Nothing follows."""

    error: MsocksError | None


Event = Moved | Parked | Resumed | Ended


class EventLog:
    """The events of one connection: the last 64 are kept for whoever comes late."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, Event]] = deque(maxlen=_KEPT)
        self._count = 0
        self._is_parked = False
        self._waiting: list[asyncio.Future[None]] = []

    def moved(self, carried: Carried) -> None:
        """A leg stands."""
        if carried.from_link is not None:
            self._add(Moved(carried.from_link, carried.link, carried.cause))
        if self._is_parked:
            self._is_parked = False
            self._add(Resumed(carried.link))

    def parked(self) -> None:
        """The leg is gone."""
        self._is_parked = True
        self._add(Parked())

    def ended(self, error: MsocksError | None) -> None:
        """The session is over."""
        self._add(Ended(error))

    async def follow(self) -> AsyncIterator[Event]:
        """Every event, from the oldest that is kept; ends after Ended."""
        seen = 0
        while True:
            for number, event in list(self._events):
                if number >= seen:
                    seen = number + 1
                    yield event
                    if isinstance(event, Ended):
                        return
            if seen == self._count:
                waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(waiting)
                await waiting

    def _add(self, event: Event) -> None:
        self._events.append((self._count, event))
        self._count += 1
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
