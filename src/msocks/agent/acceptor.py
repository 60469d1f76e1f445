"""Accepts connections from listening sockets on the reactor, and has patience where descriptors have run out."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable

import structlog

from msocks.transport.reactor import Reactor

_log = structlog.get_logger("msocks.agent.acceptor")

_ACCEPTED_AT_ONCE = 64
# Without descriptors or memory, accept() fails at once and again: then it is left alone for so long.
_EXHAUSTED_PAUSE_S = 0.1
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Owns its listeners. What it gives away is non-blocking, without Nagle's algorithm, and the taker's."""

    def __init__(self, reactor: Reactor, on_accepted: Callable[[socket.socket], None]) -> None:
        self._reactor = reactor
        self._on_accepted = on_accepted
        self.listeners: list[socket.socket] = []

    def add(self, listeners: Iterable[socket.socket]) -> None:
        """Accept from these, too; they are listening and non-blocking."""
        for listener in listeners:
            self.listeners.append(listener)
            self._watch(listener)

    def close(self) -> None:
        """Close the listeners."""
        for listener in self.listeners:
            self._reactor.unwatch(listener.fileno())
            listener.close()
        self.listeners.clear()

    def _watch(self, listener: socket.socket) -> None:
        if listener in self.listeners:
            self._reactor.watch(listener.fileno(), lambda _events: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if listener not in self.listeners:
                return
            try:
                sock, _peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warning("cannot_accept", reason=error.strerror, remedy="raise LimitNOFILE")
                    self._reactor.loop.call_later(_EXHAUSTED_PAUSE_S, self._watch, listener)
                    return
                continue  # the program has gone already (ECONNABORTED)
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._on_accepted(sock)
        self._reactor.call_soon(lambda: self._accept(listener))
