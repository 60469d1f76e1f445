"""The other end of `pattern_server`: an ordinary TCP client, also through SOCKS5.

    python -m msocks_lab.pattern_client HOST PORT --download 10000000 [--upload N] [--socks HOST:PORT] [--record FILE]
    python -m msocks_lab.pattern_client HOST PORT --echo 50 --interval 0.2 [--udp]

It prints its result as one line of JSON, and ends with 0 if every byte was right. The record in FILE has the result and
when the bytes arrived; it is written even where the transfer fails or the program is told to stop (SIGTERM).
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msocks_lab.arrival import ArrivalMeter
from msocks_lab.errors import TransferError
from msocks_lab.pattern import Pattern, PatternVerifier
from msocks_lab.pattern_server import BANNER_SEED
from msocks_lab.socks import connect_through
from msocks_lab.transfer import HalfClose, TransferRequest, abort, expect_end, receive_pattern, run_client

_PROGRESS_INTERVAL = 0.1


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def connect(options: argparse.Namespace) -> socket.socket:
    """A connection to the server, straight or through SOCKS. Raises OSError, TransferError."""
    host, port = options.socks or (options.host, options.port)
    problem: OSError = OSError(f"{host} has no address")
    kind = socket.SOCK_DGRAM if options.udp else socket.SOCK_STREAM
    for family, _, protocol, _, address in socket.getaddrinfo(host, port, type=kind):
        connection = socket.socket(family, kind, protocol)
        try:
            if options.device and not options.socks:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, options.device.encode())
            connection.settimeout(options.timeout)
            connection.connect(address)
            break
        except OSError as error:
            problem = error
            connection.close()
    else:
        raise problem
    if not options.udp:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.socks:
        connect_through(connection, options.host, options.port, options.credentials)
    return connection


def _show_progress(meter: ArrivalMeter) -> None:
    while True:
        time.sleep(_PROGRESS_INTERVAL)
        sys.stdout.write(json.dumps({"at": time.monotonic(), "received": meter.total}) + "\n")
        sys.stdout.flush()


def transfer(connection: socket.socket, options: argparse.Namespace, meter: ArrivalMeter) -> dict[str, Any]:
    """One transfer; its result. Raises OSError, TransferError."""
    if options.banner:
        verifier = PatternVerifier(BANNER_SEED)
        while verifier.received < options.banner:
            verifier.feed(connection.recv(options.banner - verifier.received) or b"\xff" * 64)
    request = TransferRequest(
        download=options.download,
        upload=options.upload,
        seed=options.seed,
        id=options.id,
        rate=options.rate,
        half_close=HalfClose(options.half_close),
        abort_after=options.abort_after,
        verify=not options.no_verify,
    )
    began = time.monotonic()
    if options.reset_after:
        connection.sendall(request.encode())
        received = receive_pattern(connection, request.seed, options.reset_after, meter)
        if received.error:
            raise TransferError(received.error)
        abort(connection)
        return {"seconds": time.monotonic() - began, "download": asdict(received)}
    down, up = run_client(connection, request, meter)
    return {"seconds": time.monotonic() - began, "download": asdict(down), "upload": asdict(up)}


class Echo:
    """Round trips: what was sent and when, and how long each took to come back, unchanged and in order (over TCP)."""

    def __init__(self, connection: socket.socket, options: argparse.Namespace, meter: ArrivalMeter) -> None:
        self._connection = connection
        self._udp: bool = options.udp
        self._count: int = options.echo
        self._size = max(8, options.size)
        self._pattern = Pattern(options.seed)
        self._meter = meter
        self._sent: dict[int, float] = {}
        self.round_trips: dict[int, float] = {}
        self.failure: Exception | None = None

    def _block(self, number: int) -> bytes:
        return number.to_bytes(8, "big") + self._pattern.at(number * self._size, self._size - 8)

    def send(self, number: int) -> None:
        """The next one leaves. Raises OSError."""
        self._sent[number] = time.monotonic()
        self._connection.sendall(self._block(number))

    def receive(self) -> None:
        """Until all are back; `failure` is what was in the way."""
        try:
            while len(self.round_trips) < self._count:
                self._take(self._connection.recv(self._size) if self._udp else self._whole())
        except (OSError, TransferError) as error:
            self.failure = error

    def _whole(self) -> bytes:
        # MSG_WAITALL is none on a socket with a time-out, and TCP cuts its segments where it likes.
        data = b""
        while len(data) < self._size:
            more = self._connection.recv(self._size - len(data))
            if not more:
                raise TransferError(f"The stream ended after {len(self.round_trips)} of {self._count} round trips")
            data += more
        return data

    def _take(self, data: bytes) -> None:
        now = time.monotonic()
        self._meter.add(len(data), now)
        number = int.from_bytes(data[:8], "big") if self._udp else len(self.round_trips)
        if number not in self._sent or data != self._block(number):
            raise TransferError(f"After {len(self.round_trips)} round trips came what was not sent: {data[:16]!r}")
        self.round_trips[number] = now - self._sent[number]


def echo(connection: socket.socket, options: argparse.Namespace, meter: ArrivalMeter) -> dict[str, Any]:
    """Send a block every `interval`, and take the time until it comes back. UDP may lose some.

    Where the server keeps a record (`id`), its end of the connection is waited for as well.
    """
    if not options.udp:
        connection.sendall(TransferRequest(echo=True, id=options.id).encode())
    work = Echo(connection, options, meter)
    receiver = threading.Thread(target=work.receive, daemon=True)
    receiver.start()
    began = time.monotonic()
    try:
        for number in range(options.echo):
            work.send(number)
            time.sleep(max(0.0, began + (number + 1) * options.interval - time.monotonic()))
    except OSError as error:
        raise work.failure or error from None
    receiver.join(min(1.0, options.timeout) if options.udp else None)
    if work.failure is not None and not (options.udp and isinstance(work.failure, OSError)):
        raise work.failure
    if options.id and not options.udp:
        connection.shutdown(socket.SHUT_WR)
        expect_end(connection)
    ordered = [work.round_trips.get(number) for number in range(options.echo)]
    return {"seconds": time.monotonic() - began, "round_trips": ordered, "lost": ordered.count(None)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pattern_client", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--socks", type=_split, metavar="HOST:PORT", help="go through this SOCKS5 server")
    parser.add_argument("--credentials", metavar="USER:PASSWORD", help="for the SOCKS server (RFC 1929)")
    parser.add_argument("--device", help="bind to this interface")
    parser.add_argument("--download", type=int, default=0, metavar="BYTES")
    parser.add_argument("--upload", type=int, default=0, metavar="BYTES")
    parser.add_argument("--seed", type=int, default=1, help="of the pattern")
    parser.add_argument("--rate", type=int, default=0, metavar="BYTES", help="per second, at most, in each direction")
    closers = list(map(str, HalfClose))
    parser.add_argument(
        "--half-close", choices=closers, default="neither", help="who sends a FIN right after its bytes"
    )
    parser.add_argument("--abort-after", type=int, default=0, metavar="BYTES", help="let the server reset it then")
    parser.add_argument("--reset-after", type=int, default=0, metavar="BYTES", help="of the download, and reset it")
    parser.add_argument("--banner", type=int, default=0, metavar="BYTES", help="that the server sends first")
    parser.add_argument("--no-verify", action="store_true", help="do not look at the bytes")
    parser.add_argument("--id", default="", help="names the server's record")
    parser.add_argument("--echo", type=int, default=0, metavar="COUNT", help="round trips instead of a transfer")
    parser.add_argument("--interval", type=float, default=0.2, metavar="SECONDS", help="between two of them")
    parser.add_argument("--size", type=int, default=64, metavar="BYTES", help="of each")
    parser.add_argument("--udp", action="store_true", help="round trips over UDP")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="without any progress")
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--progress", action="store_true", help="print bytes received every 0.1 s")
    options = parser.parse_args()
    if options.credentials:
        user, _, password = options.credentials.partition(":")
        options.credentials = (user, password)
    return options


def main() -> None:
    """See the module."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    meter = ArrivalMeter()
    result: dict[str, Any] = {"schema": 1, "started": meter.times[0], "error": "stopped"}
    if options.progress:
        threading.Thread(target=_show_progress, args=(meter,), daemon=True).start()
    try:
        with connect(options) as connection:
            result["connected"] = time.monotonic()
            work = echo if options.echo else transfer
            result |= work(connection, options, meter)
            result["error"] = ""
    except (OSError, TransferError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    finally:
        result["received"] = meter.total
        if options.record:
            options.record.write_text(json.dumps({**result, "times": meter.times, "totals": meter.totals}))
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    sys.exit(1 if result["error"] else 0)


if __name__ == "__main__":
    main()
