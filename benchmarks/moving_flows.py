"""Many connections that all carry bytes at the same time, there and back; every byte is looked at.

    python -m benchmarks.moving_flows HOST PORT --socks HOST:PORT

Reads commands from its standard input, one a line, and prints the line when it has carried one out: `open N` opens
connections, a number at a time, until there are N; `move BYTES` sends so many bytes over each of them, and has them
back from an echo server when it is done. Each connection sends a block, waits until all of it is back, and sends the
next: so all of them have bytes under way, and none has more than that.
"""

from __future__ import annotations

import argparse
import random
import select
import socket
import sys
from dataclasses import dataclass

from benchmarks.short_connections import Generator, Refused, endpoint

BLOCK = 16 * 1024
_PARALLEL = 32
_LONGEST_WAIT_S = 30.0
_POOL = memoryview(random.Random(1).randbytes(2 * BLOCK))


@dataclass(slots=True)
class _Flow:
    """One connection; it sends `left` more bytes after the present block, of which `unsent` and `due` are left."""

    connection: socket.socket
    block: memoryview
    left: int
    unsent: memoryview
    due: memoryview

    def begin_block(self) -> None:
        size = min(BLOCK, self.left)
        self.left -= size
        self.unsent = self.due = self.block[:size]

    def send(self) -> bool:
        """Whether the kernel has all of the block."""
        try:
            self.unsent = self.unsent[self.connection.send(self.unsent) :]
        except BlockingIOError:
            return False
        return not self.unsent

    def receive(self) -> None:
        data = self.connection.recv(BLOCK)
        if not data or data != bytes(self.due[: len(data)]):
            raise Refused("A connection ended early" if not data else "Other bytes came back than were sent")
        self.due = self.due[len(data) :]


def move(connections: list[socket.socket], amount: int) -> None:
    """Send `amount` bytes over each connection, and have them back. Raises Refused, OSError."""
    poll = select.epoll()
    nothing = _POOL[:0]
    flows: dict[int, _Flow] = {}
    for number, connection in enumerate(connections):
        start = number % BLOCK  # a byte of another connection would be the wrong one
        flow = _Flow(connection, _POOL[start : start + BLOCK], amount, nothing, nothing)
        flow.begin_block()
        flows[connection.fileno()] = flow
        poll.register(connection, select.EPOLLIN | select.EPOLLOUT)
    while flows:
        events = poll.poll(_LONGEST_WAIT_S)
        if not events:
            raise Refused(f"{len(flows)} connections had nothing back for {_LONGEST_WAIT_S:g} s")
        for fd, event in events:
            flow = flows[fd]
            if event & ~select.EPOLLOUT:
                flow.receive()
                if not flow.due:
                    if not flow.left:
                        poll.unregister(fd)
                        del flows[fd]
                        continue
                    flow.begin_block()
                    if not flow.send():
                        poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
            elif flow.send():
                poll.modify(fd, select.EPOLLIN)
    poll.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="moving_flows", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--socks", type=endpoint, required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    generator = Generator((options.host, options.port), options.socks, keep=True)
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "open":
            many = int(number)
            generator.run(_PARALLEL, lambda: generator.completed + generator.under_way < many)  # noqa: B023
        else:
            move(generator.held, int(number))
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main()
