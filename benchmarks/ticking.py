"""Many sessions at once that each send a small message at times and want it back: when do they run, and is all right?

    python -m benchmarks.ticking serve PORT
    python -m benchmarks.ticking run HOST PORT SOCKS_PORT SESSIONS PERIOD RECORD

`run` prints `ready` when all sessions have had an answer, ends when a line comes on its standard input, and leaves in
the file RECORD when each session's bytes arrived (seconds of CLOCK_MONOTONIC) and what was wrong with it.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from msocks_lab.errors import TransferError
from msocks_lab.socks import connect_through

_MESSAGE_BYTES = 16
_RECEIVE_BYTES = 65536
_DRAIN_S = 20.0
_CONNECT_S = 30.0


def message(session: int, number: int) -> bytes:
    """The message of a session with a number, 16 bytes; no other one is the same."""
    return f"{session:06}.{number:08};".encode()


def serve(port: int) -> None:
    """Send back whatever comes, on any number of connections."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is listener:
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(accepted, selectors.EVENT_READ)
                continue
            data = b""
            with contextlib.suppress(OSError):
                data = connection.recv(_RECEIVE_BYTES)
                connection.sendall(data)
            if not data:
                selector.unregister(connection)
                connection.close()


@dataclass(slots=True)
class Session:
    """One session on the client's side; `problem` is empty where everything that came is what was sent."""

    number: int
    connection: socket.socket
    sent: int = 0
    received: int = 0
    rest: bytes = b""
    arrivals: list[float] = field(default_factory=list)
    problem: str = ""

    def send(self) -> None:
        """The next message. A socket whose buffer is full gets none."""
        try:
            done = self.connection.send(message(self.number, self.sent))
        except BlockingIOError:
            return
        except OSError as error:
            self.problem = self.problem or str(error)
            return
        if done != _MESSAGE_BYTES:
            self.problem = self.problem or f"only {done} bytes of a message were taken"
        self.sent += 1

    def receive(self) -> bool:
        """Take what has come; whether there may be more."""
        try:
            data = self.connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            self.problem = self.problem or str(error)
            return False
        if not data:
            self.problem = self.problem or "the connection ended"
            return False
        self.arrivals.append(time.monotonic())
        self.rest += data
        while len(self.rest) >= _MESSAGE_BYTES:
            if self.rest[:_MESSAGE_BYTES] != message(self.number, self.received):
                self.problem = self.problem or f"{self.rest[:_MESSAGE_BYTES]!r} came in the place of {self.received}"
            self.rest = self.rest[_MESSAGE_BYTES:]
            self.received += 1
        return True


def _open(host: str, port: int, socks_port: int, count: int) -> list[Session]:
    sessions = []
    for number in range(count):
        connection = socket.create_connection(("127.0.0.1", socks_port), _CONNECT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connect_through(connection, host, port)
        connection.setblocking(False)
        sessions.append(Session(number, connection))
    return sessions


def _tick(sessions: list[Session], period: float) -> None:
    """Send and receive until a line comes on standard input, and then until all has come back."""
    selector = selectors.DefaultSelector()
    for session in sessions:
        selector.register(session.connection, selectors.EVENT_READ, session)
    selector.register(sys.stdin, selectors.EVENT_READ)
    began = time.monotonic()
    due = [(began + period * number / len(sessions), number) for number in range(len(sessions))]
    ready, last_s = False, float("inf")
    while time.monotonic() < last_s:
        while last_s == float("inf") and due[0][0] <= time.monotonic():
            at, number = due[0]
            sessions[number].send()
            heapq.heapreplace(due, (at + period, number))
        for key, _ in selector.select(
            max(0.0, min(due[0][0] - time.monotonic(), 0.1)) if last_s == float("inf") else 0.1
        ):
            if key.data is None:
                selector.unregister(sys.stdin)
                last_s = time.monotonic() + _DRAIN_S
            elif not key.data.receive():
                selector.unregister(key.fileobj)
        if not ready and all(session.received for session in sessions):
            print("ready", flush=True)
            ready = True
        if last_s < float("inf") and all(session.problem or session.received == session.sent for session in sessions):
            break
    for session in sessions:
        if not session.problem and session.received != session.sent:
            session.problem = f"{session.sent - session.received} of {session.sent} messages never came back"


def run(host: str, port: int, socks_port: int, count: int, period: float, record: Path) -> None:
    """See the module."""
    try:
        sessions = _open(host, port, socks_port, count)
    except (OSError, TransferError) as error:
        print(f"not all of {count} sessions could be opened: {error}", flush=True)
        return
    _tick(sessions, period)
    told = [{"arrivals": each.arrivals, "problem": each.problem, "messages": each.received} for each in sessions]
    record.write_text(json.dumps({"schema": 1, "sessions": told}))


def main() -> None:
    """See the module."""
    match sys.argv[1:]:
        case ["serve", port]:
            serve(int(port))
        case ["run", host, port, socks_port, count, period, record]:
            run(host, int(port), int(socks_port), int(count), float(period), Path(record))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
