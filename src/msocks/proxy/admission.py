"""Connections that have not yet said what they want: how many there may be, from where, and for how long.

Whoever never speaks is closed at the deadline. When there are too many, in all or from one source, the oldest of them
goes: an honest handshake takes a round trip, so the oldest is hardly ever one.
"""

from __future__ import annotations

import asyncio
import socket
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Protocol, TypeAlias

from msocks.transport.deadlines import Deadlines
from msocks.values.endpoint import Address

Source: TypeAlias = bytes


class HalfOpen(Protocol):
    """A connection in its handshake."""

    @property
    def source(self) -> Source:
        """What counts as one source; see `source_of`."""

    def abandon(self) -> None:
        """Its time, or its place, is gone: close it."""


def source_of(sockaddr: tuple[object, ...]) -> Source:
    """Whose connections are counted together: an IPv4 address, or an IPv6 /64 (which is what one host has)."""
    return _source_of_text(str(sockaddr[0]))


_MAPPED = bytes(10) + b"\xff\xff"


@lru_cache(maxsize=1024)
def _source_of_text(text: str) -> Source:
    if ":" not in text:
        return socket.inet_aton(text)
    packed = socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    return packed[12:] if packed[:12] == _MAPPED else packed[:8]


def source_of_address(address: Address) -> Source:
    """The same for an address."""
    return address.packed if isinstance(address, IPv4Address) else source_of((str(address),))


class Admission:
    """Keeps the half-open connections of all listeners."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, timeout_s: float, total: int, per_source: int) -> None:
        self._total = total
        self._per_source = per_source
        self._waiting: Deadlines[HalfOpen] = Deadlines(loop, timeout_s, self._expired)
        self._of_source: dict[Source, dict[HalfOpen, None]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, connection: HalfOpen) -> None:
        """A connection was accepted; the oldest one of its source, or of all, may have to go for it."""
        source = connection.source
        same = self._of_source.get(source)
        if same is not None and len(same) >= self._per_source:
            self._evict(next(iter(same)))
        if len(self._waiting) >= self._total:
            oldest = self._waiting.oldest()
            if oldest is not None:
                self._evict(oldest)
        # Only now: evicting the source's last connection has dropped its entry.
        same = self._of_source.get(source)
        if same is None:
            same = self._of_source[source] = {}
        same[connection] = None
        self._waiting.add(connection)

    def leave(self, connection: HalfOpen) -> None:
        """The connection has said what it wants, or is closed."""
        if self._waiting.discard(connection):
            self._forget(connection)

    def close(self) -> None:
        """Close all that are half-open."""
        for connection in self._waiting.take_all():
            self._forget(connection)
            connection.abandon()

    def _evict(self, connection: HalfOpen) -> None:
        self.leave(connection)
        connection.abandon()

    def _expired(self, connection: HalfOpen) -> None:
        self._forget(connection)
        connection.abandon()

    def _forget(self, connection: HalfOpen) -> None:
        same = self._of_source[connection.source]
        del same[connection]
        if not same:
            del self._of_source[connection.source]


class FailureLimit:
    """Counts failed log-ins by source, and says who has had enough: more than `allowed` within `window_s`."""

    def __init__(self, allowed: int = 20, window_s: float = 60.0, sources: int = 10_000) -> None:
        self._allowed = allowed
        self._window_s = window_s
        self._sources = sources
        self._failures: dict[Source, tuple[float, int]] = {}

    def blocked(self, source: Source, now: float) -> bool:
        """Whether log-ins from `source` are refused unseen for the moment."""
        since, count = self._failures.get(source, (now, 0))
        return count >= self._allowed and now - since < self._window_s

    def failed(self, source: Source, now: float) -> None:
        """A log-in from `source` has failed."""
        since, count = self._failures.pop(source, (now, 0))
        if now - since >= self._window_s:
            since, count = now, 0
        if len(self._failures) >= self._sources:
            del self._failures[next(iter(self._failures))]
        self._failures[source] = (since, count + 1)
