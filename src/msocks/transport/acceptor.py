"""Accepts connections from listening sockets on the reactor, and has patience where descriptors have run out."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from typing import Any

from msocks.transport.reactor import Reactor

_ACCEPTED_AT_ONCE = 64
# Without descriptors or memory, accept() fails at once and again, and nothing tells when there are some: then it is
# left alone for so long.
_EXHAUSTED_PAUSE_S = 0.1
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Owns its listeners."""

    def __init__(
        self,
        reactor: Reactor,
        on_accepted: Callable[[socket.socket, tuple[Any, ...]], None],
        on_exhausted: Callable[[OSError], None],
    ) -> None:
        """
        Args:
            reactor: Watches the listeners.
            on_accepted: Is given each connection as a non-blocking socket, which it owns, and the peer's address.
            on_exhausted: Is told each time that accept() fails for want of descriptors or memory.
        """
        self._reactor = reactor
        self._on_accepted = on_accepted
        self._on_exhausted = on_exhausted
        self.listeners: list[socket.socket] = []

    def add(self, listeners: Iterable[socket.socket]) -> None:
        """Accept from these, too; they are listening and non-blocking."""
        for listener in listeners:
            self.listeners.append(listener)
            self._watch(listener)

    def close(self) -> None:
        """Close the listeners; may be called by who is given a connection."""
        for listener in self.listeners:
            self._reactor.unwatch(listener.fileno())
            listener.close()
        self.listeners.clear()

    def _watch(self, listener: socket.socket) -> None:
        self._reactor.watch(listener.fileno(), lambda _events: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if listener not in self.listeners:
                return
            try:
                sock, sockaddr = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._on_exhausted(error)
                    self._reactor.loop.call_later(_EXHAUSTED_PAUSE_S, self._accept, listener)
                    return
                continue  # it has gone already (ECONNABORTED)
            sock.setblocking(False)
            self._on_accepted(sock, sockaddr)
        self._reactor.call_soon(lambda: self._accept(listener))
