"""Connects to the first of several addresses that answers: Happy Eyeballs version 2 (RFC 8305 sections 4 to 6).

The addresses come sorted by preference; the families are interleaved, and the next address is tried when the one before
has failed or has not answered for the connection attempt delay. Attempts that are under way go on beside it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Address
from itertools import chain, zip_longest
from typing import TypeAlias

from msocks.transport.kernel import reset_on_close
from msocks.transport.reactor import FAILED, Reactor
from msocks.values.endpoint import Address

ATTEMPT_DELAY_S = 0.25
"""RFC 8305 section 8: the recommended connection attempt delay."""

Preparation: TypeAlias = Callable[[socket.socket, tuple[Address, int]], None]
"""Gets a socket before it connects, and the address and port that it will be connected to. May raise OSError."""

# The attempt that got furthest says most about what is wrong.
_TELLING = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """The addresses with the families taking turns, each family in its own order, the first one's first."""
    if len(addresses) < 2:
        return list(addresses)
    first = [each for each in addresses if each.version == addresses[0].version]
    second = [each for each in addresses if each.version != addresses[0].version]
    return [each for each in chain.from_iterable(zip_longest(first, second)) if each is not None]


def most_telling(errors: Sequence[OSError]) -> OSError:
    """The error to report when all attempts have failed."""
    return min(errors, key=lambda each: _TELLING.index(each.errno) if each.errno in _TELLING else len(_TELLING))


# Writing an address takes as long as connecting to it costs here otherwise, and the same few come again and again.
_text_of = lru_cache(maxsize=1024)(str)


class ConnectRace:
    """One connection to any of `addresses`, which must be at least one, in the order of trying.

    `prepare` gets each socket, and where it goes, before it connects; an OSError that it raises is that attempt's.
    `on_done` is called once, not before the constructor has returned, with the connected non-blocking socket or with
    the error of the attempts; after `cancel` it is not called.
    """

    __slots__ = ("_addresses", "_attempts", "_errors", "_next", "_on_done", "_port", "_prepare", "_reactor", "_timer")

    def __init__(
        self,
        reactor: Reactor,
        addresses: Sequence[Address],
        port: int,
        prepare: Preparation,
        on_done: Callable[[socket.socket | OSError], None],
    ) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self._port = port
        self._prepare = prepare
        self._on_done: Callable[[socket.socket | OSError], None] | None = on_done
        self._next = 0
        self._attempts: dict[int, socket.socket] = {}
        self._errors: list[OSError] = []
        self._timer: asyncio.TimerHandle | None = None
        self._try_next()

    def cancel(self) -> None:
        """Give up: close what was begun, and tell nobody."""
        self._on_done = None
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for sock in self._attempts.values():
            self._reactor.unwatch(sock.fileno())
            reset_on_close(sock)  # one that has connected meanwhile must not look like a whole conversation
            sock.close()
        self._attempts.clear()

    def _try_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._next < len(self._addresses):
            address = self._addresses[self._next]
            self._next += 1
            if self._start(address):
                if self._next < len(self._addresses):
                    self._timer = self._reactor.loop.call_later(ATTEMPT_DELAY_S, self._on_delay)
                return
        if not self._attempts:
            # Not at once: the caller does not have this object yet.
            self._reactor.call_soon(self._fail)

    def _on_delay(self) -> None:
        self._timer = None
        self._try_next()

    def _start(self, address: Address) -> bool:
        family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._errors.append(error)
            return False
        try:
            self._prepare(sock, (address, self._port))
            # An exception for what always comes, EINPROGRESS, would cost more than the rest of this.
            code = sock.connect_ex((_text_of(address), self._port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            self._errors.append(error)
            sock.close()
            return False
        self._attempts[sock.fileno()] = sock
        self._reactor.watch(sock.fileno(), partial(self._on_events, sock))
        return True

    def _on_events(self, sock: socket.socket, events: int) -> None:
        if sock.fileno() not in self._attempts:
            return  # connected, and its new owner has not begun to watch it
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & FAILED else 0
        del self._attempts[sock.fileno()]
        if not code:
            # The socket stays watched: the datapath takes the watch over.
            on_done, self._on_done = self._on_done, None
            if self._attempts or self._timer is not None:
                self._stop()
            if on_done is not None:
                on_done(sock)
            return
        self._reactor.unwatch(sock.fileno())
        sock.close()
        self._errors.append(OSError(code, os.strerror(code)))
        if self._next < len(self._addresses):
            self._try_next()
        elif not self._attempts:
            self._fail()

    def _fail(self) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(most_telling(self._errors))
