"""Which network namespace a socket is in: the agent's loopback is not that of a container."""

from __future__ import annotations

import socket
import sys

_SO_NETNS_COOKIE = 71


def netns_cookie(sock: socket.socket) -> int:
    """Names the network namespace of a socket on this host; 0 before Linux 5.14, which cannot tell."""
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0


def own_netns_cookie() -> int:
    """That of the calling thread."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return netns_cookie(sock)
