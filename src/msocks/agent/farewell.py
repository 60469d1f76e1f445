"""Closes connections of programs that were told no, so that they get to read it.

A socket that is closed while the program still sends makes the kernel answer with a reset, which may overtake the
refusal. So the connection is ended in our direction, and read away until the program ends its own (RFC 9112 section 9.6
describes the same for HTTP).
"""

from __future__ import annotations

import contextlib
import socket

from msocks.transport.deadlines import Deadlines
from msocks.transport.kernel import reset_on_close
from msocks.transport.reactor import Reactor

# RFC 1928 section 6 gives ten seconds at most after a refusal.
_PATIENCE_S = 2.0
_MOST = 256
_CHUNK_BYTES = 64 * 1024
_MOST_READ_BYTES = 1024 * 1024


class Farewells:
    """Connections that are on their way out. At most 256, 2 s and 1 MiB read away each."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._leaving = Deadlines[socket.socket](reactor.loop, _PATIENCE_S, self._close, limit=_MOST)

    def say(self, sock: socket.socket, answer: bytes | None) -> None:
        """Send `answer` and close, reset where it is None; the socket (non-blocking) is owned from now on."""
        if answer is None:
            with contextlib.suppress(OSError):
                reset_on_close(sock)
            self._close(sock)
            return
        try:
            reset_on_close(sock, False)
            # The first bytes on their way to this program: an empty send buffer takes them whole.
            sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(sock)
            return
        room = _MOST_READ_BYTES

        def read_away(_events: int = 0) -> None:
            nonlocal room
            try:
                while room > 0 and (data := sock.recv(_CHUNK_BYTES)):
                    room -= len(data)
            except BlockingIOError:
                return
            except OSError:
                pass
            self._leaving.discard(sock)
            self._close(sock)

        self._leaving.add(sock)
        self._reactor.watch(sock.fileno(), read_away)

    def close(self) -> None:
        """Close all of them now."""
        for sock in self._leaving.take_all():
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._reactor.unwatch(sock.fileno())
        with contextlib.suppress(OSError):
            sock.close()
