"""Who waits for a session to run over a link that somebody has asked for."""

from __future__ import annotations

import asyncio

from msocks.errors import MsocksError


class AwaitedMoves:
    """Of one session. To be used on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def to(self, link: str) -> asyncio.Future[None]:
        """Done when the session runs over `link`; or with the error why it does not."""
        waiting: asyncio.Future[None] = self._loop.create_future()
        self._waiting.setdefault(link, []).append(waiting)
        return waiting

    def carried(self, link: str) -> None:
        """It runs there."""
        for waiting in self._waiting.pop(link, []):
            if not waiting.done():
                waiting.set_result(None)

    def failed(self, link: str, error: MsocksError) -> None:
        """It goes on where it was."""
        for waiting in self._waiting.pop(link, []):
            if not waiting.done():
                waiting.set_exception(error)

    def ended(self, error: MsocksError) -> None:
        """The session is over."""
        for link in list(self._waiting):
            self.failed(link, error)
