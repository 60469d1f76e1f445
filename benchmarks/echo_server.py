"""An echo server that costs little, so that what is between it and its clients is what a rate or a size shows.

    python -m benchmarks.echo_server PORT [BYTES]

One epoll(7) loop on raw sockets: whatever comes goes back, at most BYTES at a time, a FIN is answered with a FIN.
"""

from __future__ import annotations

import select
import socket
import sys

_BACKLOG = 4096
_PIECE = 4096


def main() -> None:
    """See the module."""
    address = ("::", int(sys.argv[1]))
    piece = int(sys.argv[2]) if len(sys.argv) > 2 else _PIECE
    listener = socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    continue
                connections[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
                continue
            connection = connections[fd]
            try:
                data = connection.recv(piece)
                connection.sendall(data)
            except OSError:
                data = b""
            if not data:
                del connections[fd]
                connection.close()


if __name__ == "__main__":
    main()
