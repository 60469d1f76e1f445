"""Connections that carry one byte there and back: many after each other for a rate, or many at once that then idle.

    python -m benchmarks.short_connections HOST PORT [--socks HOST:PORT] --seconds 2 [--parallel 32]
    python -m benchmarks.short_connections HOST PORT [--socks HOST:PORT] --hold

With --seconds it opens connections for so long, a fixed number at a time, closes each after its round trip, and prints
{"connections": count, "seconds": seconds, "error": text}. With --hold it reads numbers from its standard input; for
each it opens connections until so many idle, and prints the number.

Through SOCKS5 (RFC 1928) it waits for every answer before it goes on, as most clients do. One epoll(7) loop on raw
sockets, so that it costs less than what it measures.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_GREETING = b"\x05\x01\x00"
_METHOD = b"\x05\x00"
_REPLY_LENGTH = {1: 10, 4: 22}  # by the kind of the bound address
_PARALLEL = 32
_LONGEST_WAIT_S = 10.0


class Refused(Exception):
    """A connection did not come about, or its byte did not come back."""


@dataclass(slots=True)
class Generator:
    """Opens connections, a number at a time, and takes each through its dialogue."""

    destination: tuple[str, int]
    socks: tuple[str, int] | None
    keep: bool  # leave connections open after the round trip
    completed: int = 0
    held: list[socket.socket] = field(default_factory=list)
    _poll: select.epoll = field(default_factory=select.epoll)
    _open: dict[int, tuple[socket.socket, Iterator[None]]] = field(default_factory=dict)

    def run(self, parallel: int, wanted: Callable[[], bool]) -> None:
        """Keep `parallel` connections going while more are wanted; returns when the last is done. Raises Refused."""
        while True:
            while len(self._open) < parallel and wanted():
                self._begin()
            if not self._open:
                return
            events = self._poll.poll(_LONGEST_WAIT_S)
            if not events:
                raise Refused(f"{len(self._open)} connections did not answer for {_LONGEST_WAIT_S} s")
            for fd, _ in events:
                connection, dialogue = self._open[fd]
                try:
                    next(dialogue)
                except StopIteration:
                    self._finish(fd, connection)
                except OSError as error:
                    raise Refused(str(error)) from error

    @property
    def under_way(self) -> int:
        """Connections that have begun and are not complete."""
        return len(self._open)

    def _begin(self) -> None:
        host, port = self.socks or self.destination
        connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect_ex((host, port))
        fd = connection.fileno()
        self._poll.register(fd, select.EPOLLOUT)
        self._open[fd] = (connection, self._dialogue(connection))

    def _dialogue(self, connection: socket.socket) -> Iterator[None]:
        """Resumed whenever something has arrived; first when the connection stands."""
        if self.socks:
            connection.send(_GREETING)
            self._poll.modify(connection.fileno(), select.EPOLLIN)
            yield
            if connection.recv(2) != _METHOD:
                raise Refused("The SOCKS server wants authentication")
            address = ipaddress.ip_address(self.destination[0])
            kind = b"\x01" if address.version == 4 else b"\x04"
            connection.send(b"\x05\x01\x00" + kind + address.packed + self.destination[1].to_bytes(2, "big"))
            yield
            reply = connection.recv(22)
            if len(reply) < 4 or reply[1] != 0 or len(reply) != _REPLY_LENGTH.get(reply[3]):
                raise Refused(f"The SOCKS server answered {reply.hex() or 'nothing'}")
        connection.send(b"x")
        self._poll.modify(connection.fileno(), select.EPOLLIN)
        yield
        if connection.recv(1) != b"x":
            raise Refused("The byte did not come back")

    def _finish(self, fd: int, connection: socket.socket) -> None:
        del self._open[fd]
        self._poll.unregister(fd)
        self.completed += 1
        if self.keep:
            self.held.append(connection)
        else:
            connection.close()


def _rate(generator: Generator, seconds: float, parallel: int) -> None:
    began = time.monotonic()
    error = ""
    try:
        generator.run(parallel, lambda: time.monotonic() < began + seconds)
    except Refused as refused:
        error = str(refused)
    elapsed = time.monotonic() - began
    print(json.dumps({"connections": generator.completed, "seconds": elapsed, "error": error}), flush=True)
    sys.exit(1 if error else 0)


def _hold(generator: Generator, parallel: int) -> None:
    for line in sys.stdin:
        number = int(line)
        generator.run(parallel, lambda: generator.completed + generator.under_way < number)  # noqa: B023
        print(number, flush=True)


def endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="short_connections", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--socks", type=endpoint, metavar="HOST:PORT")
    parser.add_argument("--parallel", type=int, default=_PARALLEL)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seconds", type=float)
    what.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    generator = Generator((options.host, options.port), options.socks, keep=options.hold)
    if options.hold:
        _hold(generator, options.parallel)
    else:
        _rate(generator, options.seconds, options.parallel)


if __name__ == "__main__":
    main()
