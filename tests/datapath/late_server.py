"""The server's end of a connection whose handshake may end long after the proxy's `connect` has returned."""

from __future__ import annotations

import os
import select
import socket
from typing import ClassVar
from weakref import WeakKeyDictionary


class LateServer(socket.socket):
    """A socket like any other once `stands` has said so; until then it is its listener."""

    _accepted: ClassVar[WeakKeyDictionary[socket.socket, dict[tuple[str, int], socket.socket]]] = WeakKeyDictionary()

    def __init__(self, listener: socket.socket, leg: socket.socket) -> None:
        """`leg` is the other end."""
        super().__init__(listener.family, listener.type, listener.proto, os.dup(listener.fileno()))
        self.setblocking(False)
        self._listener = listener
        self._peer = leg.getsockname()[:2]
        self._stands = False

    def stands(self, timeout_s: float = 0) -> bool:
        """Whether the server has accepted it; waits so long for that."""
        if not self._stands:
            known = self._accepted.setdefault(self._listener, {})
            while select.select([self._listener], [], [], timeout_s if self._peer not in known else 0)[0]:
                accepted, peer = self._listener.accept()
                known[peer[:2]] = accepted
            found = known.pop(self._peer, None)
            if found is not None:
                os.dup2(found.fileno(), self.fileno())
                found.close()
                self.setblocking(False)
                self._stands = True
        return self._stands
