"""The answer to a program that waits in connect() (`msocks run`): a connection of its own, or an error of its own.

The kernel holds the program's SYN back and nobody listens where it was sent. The agent grants by connecting to the
program's port from that very place: the two SYNs cross and make one connection (simultaneous open, RFC 9293 section
3.5). The handshake is the kernel's alone, whether the program runs meanwhile or not.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from msocks.agent.answers import reply_code_of
from msocks.errors import MsocksError
from msocks.protocol.socks5_wire import ReplyCode
from msocks.values.endpoint import Endpoint

# Over loopback it is done at once, unless the program is just doing something to its socket.
_PATIENCE_S = 0.25

_ERRNO_OF = {
    ReplyCode.NOT_ALLOWED: errno.EACCES,
    ReplyCode.NETWORK_UNREACHABLE: errno.ENETUNREACH,
    ReplyCode.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    ReplyCode.TTL_EXPIRED: errno.ETIMEDOUT,
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: errno.ENETUNREACH,
}


def errno_of(error: MsocksError) -> int:
    """The errno of connect() that says most of `error`."""
    return _ERRNO_OF.get(reply_code_of(error), errno.ECONNREFUSED)


class HeldConnect:
    """See the module."""

    name = "connect()"

    def __init__(self, sock: socket.socket, program: Endpoint, on_refused: Callable[[int], None]) -> None:
        """
        Args:
            sock: Non-blocking, bound to where the program's SYN was sent, not connected.
            program: The program's end.
            on_refused: Is given the errno.
        """
        self._sock = sock
        self._program = program
        self._on_refused = on_refused

    def grant(self, bound: Endpoint | None) -> bytes:
        """Connect the socket with the program's; raises OSError where the program waits no more."""
        del bound  # connect() has no place for it
        try:
            self._sock.settimeout(_PATIENCE_S)
            self._sock.connect((str(self._program.host), self._program.port))
        except OSError:
            self._on_refused(errno.ECONNREFUSED)  # should it wait still
            raise
        finally:
            self._sock.setblocking(False)
        return b""

    def refuse(self, error: MsocksError) -> bytes:
        """Let the program's connect() fail."""
        self._on_refused(errno_of(error))
        return b""

    def take_trailing(self) -> bytes:
        """A program in connect() has said nothing yet."""
        return b""
