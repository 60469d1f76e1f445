"""An ordinary TCP server whose every byte can be checked, for the host `server`.

    python -m msocks_lab.pattern_server [--port 9000] [--records DIRECTORY] [--banner BYTES] [--no-read]

It does what each connection's `transfer.TransferRequest` asks for, and echoes UDP datagrams on the same port. With
--records every connection with an `id` leaves DIRECTORY/ID.json: when its bytes arrived, and its receipt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from msocks_lab.arrival import ArrivalMeter
from msocks_lab.errors import TransferError
from msocks_lab.pattern import Pattern
from msocks_lab.transfer import RECEIVE_SIZE, Receipt, TransferRequest, read_line, run_server

DEFAULT_PORT = 9000
BANNER_SEED = 0
_THREAD_STACK = 256 * 1024


def _echo(connection: socket.socket, meter: ArrivalMeter) -> Receipt:
    buffer = memoryview(bytearray(RECEIVE_SIZE))
    while count := connection.recv_into(buffer):
        meter.add(count)
        connection.sendall(buffer[:count])
    return Receipt(meter.total, "")


def _record(path: Path, request: TransferRequest, meter: ArrivalMeter, outcome: dict[str, object]) -> None:
    record = {"schema": 1, "request": asdict(request), "times": meter.times, "totals": meter.totals, **outcome}
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(record))
    partial.rename(path)  # who sees the file sees all of it


def serve_connection(connection: socket.socket, records: Path | None, banner: int, read: bool) -> None:
    """One connection, to its end."""
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if banner:
            connection.sendall(Pattern(BANNER_SEED).at(0, banner))
        while not read:
            time.sleep(3600)
        try:
            request = TransferRequest.decode(read_line(connection))
        except TransferError as error:
            sys.stderr.write(f"{error}\n")
            return
        meter = ArrivalMeter()
        outcome: dict[str, object] = {"receipt": None, "error": ""}
        try:
            receipt = _echo(connection, meter) if request.echo else run_server(connection, request, meter)
            outcome["receipt"] = asdict(receipt)
        except (OSError, TransferError) as error:
            outcome["error"] = str(error)
        if records is not None and request.id:
            _record(records / f"{request.id}.json", request, meter, outcome)


def _echo_datagrams(port: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))
        while True:
            data, sender = sock.recvfrom(65536)
            sock.sendto(data, sender)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="pattern_server", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--records", type=Path, help="directory for records of arrivals")
    parser.add_argument("--banner", type=int, default=0, help="bytes of pattern 0 to send to every client at once")
    parser.add_argument("--no-read", action="store_true", help="never read from a connection")
    options = parser.parse_args()
    threading.stack_size(_THREAD_STACK)
    threading.Thread(target=_echo_datagrams, args=(options.port,), daemon=True).start()
    listener = socket.create_server(
        ("::", options.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096, reuse_port=False
    )
    while True:
        connection, _ = listener.accept()
        arguments = (connection, options.records, options.banner, not options.no_read)
        threading.Thread(target=serve_connection, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
