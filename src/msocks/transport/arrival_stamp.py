"""When a datagram came to this host, by its kernel: how long a busy program took to look is no part of a round trip."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable

_SO_TIMESTAMPNS = 35
_TIMESTAMP = struct.Struct("@ll")  # struct timespec, CLOCK_REALTIME
_OLDEST_S = 10.0

STAMP_BYTES = socket.CMSG_SPACE(_TIMESTAMP.size)
"""Room for a stamp in the ancillary data of `recvmsg`."""


def stamp_arrivals(sock: socket.socket) -> None:
    """Let the kernel tell of each datagram when it came. Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def age_s(ancillary: Iterable[tuple[int, int, bytes]]) -> float:
    """For how long the datagram with this ancillary data has been in this host; 0 where the clock was set meanwhile."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESTAMP.unpack(data)
            age = time.time() - (seconds + nanoseconds / 1e9)
            return age if 0 <= age < _OLDEST_S else 0.0
    return 0.0
