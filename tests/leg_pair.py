"""A leg's connection on the loopback, with both of its ends in the test's hands."""

from __future__ import annotations

import socket

from msocks.transport.kernel import prepare_leg


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Near and far end, non-blocking and with a leg's socket options."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        prepare_leg(sock)
    return near, far
