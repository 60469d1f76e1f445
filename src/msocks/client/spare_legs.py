"""Connections to the proxy that are opened before they are needed, one for each link that carries nothing.

A leg costs a round trip for TCP's handshake and half of one for the request. When the link of a session goes, only the
second is left if a connection over another link stands already. The proxy closes a connection that says nothing when
its handshake deadline is over (10 s by default). A spare is replaced before that, so that it is not taken just when the
proxy lets it go; and it is never so old that a NAT could have forgotten it.

A spare that is taken is an attempt like any other: `msocks.client.connection` sees to it that nothing is lost with one
that comes to nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice

from msocks.errors import MsocksError
from msocks.transport.reactor import FAILED, READABLE, Reactor
from msocks.values.endpoint import Endpoint
from msocks.values.link import Link

_PAUSE_S = 0.05
_AGAIN_S = 2.0
_AGAIN_MOST_S = 60.0
_RENEW_S = 7.0
_MOST = 4
"""Links with a spare at a time."""


class SpareLegs:
    """See the module."""

    def __init__(
        self,
        reactor: Reactor,
        dial: Callable[[str], Awaitable[socket.socket]],
        links: Callable[[], tuple[Iterable[str], Iterable[str]]],
    ) -> None:
        """
        Args:
            reactor: Watches the spares.
            dial: Connects to the proxy over a link; it raises OSError or MsocksError.
            links: The links that should have a spare, and those that can be used at all.
        """
        self._reactor = reactor
        self._dial = dial
        self._links = links
        self._due: asyncio.TimerHandle | None = None
        self._wanted: frozenset[str] = frozenset()
        self._spares: dict[str, socket.socket] = {}
        self._openings: dict[str, asyncio.Task[None]] = {}
        self._renewals: dict[str, asyncio.TimerHandle] = {}

    def reconsider(self) -> None:
        """The links may be others now: looked at a little later, when all of one cause has happened."""
        if self._due is None:
            self._due = self._reactor.loop.call_later(_PAUSE_S, self._keep_now)

    def keep(self, links: Iterable[str], usable: Iterable[str]) -> None:
        """Have one over each of `links`, of which the first count if they are many.

        One that stands over another that is usable stays as long as it lasts.
        """
        self._wanted = frozenset(islice(links, _MOST))
        for link in self._openings.keys() - self._wanted:
            self._openings.pop(link).cancel()
        for link in self._spares.keys() - frozenset(usable):
            self._close(link)
        for link in self._wanted - self._spares.keys():
            self._begin(link)

    def retry(self) -> None:
        """The proxy was heard anew: one that it has closed before, as it had no place or died, is not waited for."""
        for link in list(self._openings):
            self._openings.pop(link).cancel()
            self._begin(link)

    def take(self, link: Link) -> socket.socket | None:
        """The spare over a link, if one stands; it is the caller's then, and another is opened where one is wanted."""
        spare = self._let_go(link.name)
        if spare is None:
            return None
        self.reconsider()
        try:
            if Endpoint.from_sockaddr(spare.getsockname()).address in link.addresses:
                spare.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return spare
        except OSError:
            pass
        spare.close()
        return None

    def close(self) -> None:
        """Close all; none is opened any more."""
        if self._due is not None:
            self._due.cancel()
        self.keep((), ())

    # -- inside -----------------------------------------------------------------------------------------------------

    def _keep_now(self) -> None:
        self._due = None
        self.keep(*self._links())

    def _let_go(self, link: str) -> socket.socket | None:
        spare = self._spares.pop(link, None)
        if spare is not None:
            self._renewals.pop(link).cancel()
            self._reactor.unwatch(spare.fileno())
        return spare

    def _close(self, link: str) -> None:
        spare = self._let_go(link)
        if spare is not None:
            spare.close()

    async def _open(self, link: str, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            try:
                spare = await self._dial(link)
                break
            except (OSError, MsocksError):
                pause_s = min(_AGAIN_MOST_S, 2 * pause_s or _AGAIN_S)
        del self._openings[link]
        self._close(link)  # the one before
        self._spares[link] = spare
        self._renewals[link] = self._reactor.loop.call_later(_RENEW_S, self._renew, link)
        self._reactor.watch(spare.fileno(), lambda events: self._on_events(link, spare, events))

    def _renew(self, link: str) -> None:
        if link not in self._wanted:
            self._close(link)
        else:
            self._begin(link)

    def _begin(self, link: str, pause_s: float = 0.0) -> None:
        if link not in self._openings:
            self._openings[link] = self._reactor.loop.create_task(self._open(link, pause_s))

    def _on_events(self, link: str, spare: socket.socket, events: int) -> None:
        """It was closed: nothing else is ever said on it. A proxy that has no place for it shall not be pressed."""
        if events & (READABLE | FAILED) and self._spares.get(link) is spare:
            self._close(link)
            if link in self._wanted:
                self._begin(link, _AGAIN_MOST_S)
