"""The proxy's addresses, where an access link names it by a name: looked up in good time, kept while moving."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence

from msocks.values.endpoint import Endpoint

_FRESH_S = 10.0


class ProxyAddresses:
    """The access link's endpoints with names replaced by their addresses.

    What was once found is kept until something else is found: after a move, when the way to a name server is the last
    thing to work again, nothing has to be looked up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoints: Sequence[Endpoint]) -> None:
        """
        Args:
            loop: Does the lookups, in its threads.
            endpoints: In order of preference.
        """
        self._loop = loop
        self._endpoints = tuple(endpoints)
        self._found: dict[Endpoint, tuple[Endpoint, ...]] = {
            endpoint: (endpoint,) for endpoint in endpoints if endpoint.address is not None
        }
        self._lookup: asyncio.Task[None] | None = None
        self._looked_up_at = -_FRESH_S
        self._failure: OSError | None = None
        self._on_change: list[Callable[[], None]] = []

    @property
    def known(self) -> tuple[Endpoint, ...]:
        """Every address found so far, in the order of preference; those of one name as the resolver gave them."""
        return tuple(dict.fromkeys(found for endpoint in self._endpoints for found in self._found.get(endpoint, ())))

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back when `known` has changed."""
        self._on_change.append(callback)

    def resolve_soon(self) -> None:
        """Look all names up in the background, unless that was done just now. Failures change nothing."""
        if all(endpoint.address is not None for endpoint in self._endpoints) or self._lookup is not None:
            return
        if self._failure is not None or time.monotonic() - self._looked_up_at >= _FRESH_S:
            self._lookup = self._loop.create_task(self._resolve())

    async def wait_known(self) -> tuple[Endpoint, ...]:
        """`known`, after a lookup where nothing is.

        Raises:
            OSError: No name has an address (socket.gaierror).
        """
        if not self.known:
            self.resolve_soon()
            if self._lookup is not None:
                await asyncio.shield(self._lookup)
            if not self.known and self._failure is not None:
                raise self._failure
        return self.known

    def close(self) -> None:
        """Give up a lookup that is under way."""
        if self._lookup is not None:
            self._lookup.cancel()

    async def _resolve(self) -> None:
        before = self.known
        try:
            names = [endpoint for endpoint in self._endpoints if endpoint.address is None]
            outcomes = await asyncio.gather(*(self._addresses_of(name) for name in names), return_exceptions=True)
            self._failure = None
            for name, outcome in zip(names, outcomes, strict=True):
                if isinstance(outcome, OSError):
                    self._failure = outcome
                elif isinstance(outcome, BaseException):
                    raise outcome
                elif outcome:
                    self._found[name] = outcome
            self._looked_up_at = time.monotonic()
        finally:
            self._lookup = None
        if self.known != before:
            for callback in list(self._on_change):
                callback()

    async def _addresses_of(self, endpoint: Endpoint) -> tuple[Endpoint, ...]:
        found = await self._loop.getaddrinfo(str(endpoint.host), endpoint.port, type=socket.SOCK_STREAM)
        return tuple(dict.fromkeys(Endpoint.from_sockaddr(sockaddr) for *_, sockaddr in found))
