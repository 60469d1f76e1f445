"""The name server of one run, on loopback; the hooks bring the program's questions here, whomever it asks."""

from __future__ import annotations

import contextlib
import socket

from msocks.interception.name_pool import NamePool
from msocks.interception.name_server import MAX_BYTES, answer

# Then whatever else is ready gets its turn.
_AT_ONCE = 64


class Resolver:
    """See the module."""

    def __init__(self) -> None:
        """Raises OSError where 127.0.0.1 has no port left; a host without ::1 has no program that asks there."""
        self.pool = NamePool()
        self._sockets = [_bound(socket.AF_INET, "127.0.0.1")]
        with contextlib.suppress(OSError):
            self._sockets.append(_bound(socket.AF_INET6, "::1"))

    @property
    def ports(self) -> tuple[int, int]:
        """On 127.0.0.1 and on ::1, 0 where there is none."""
        ports = [int(sock.getsockname()[1]) for sock in self._sockets]
        return ports[0], ports[1] if len(ports) > 1 else 0

    @property
    def descriptors(self) -> frozenset[int]:
        """To be watched for reading."""
        return frozenset(sock.fileno() for sock in self._sockets)

    def serve(self) -> None:
        """Answer what has come."""
        for sock in self._sockets:
            for _ in range(_AT_ONCE):
                try:
                    query, program = sock.recvfrom(MAX_BYTES)
                    if (reply := answer(query, self.pool)) is not None:
                        sock.sendto(reply, program)
                except OSError:  # read empty; or the program is gone
                    break

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets:
            sock.close()


def _bound(family: int, address: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind((address, 0))
    except OSError:
        sock.close()
        raise
    return sock
