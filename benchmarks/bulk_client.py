"""A client of the lab's pattern server that keeps its side open until it has everything, as most programs do.

    python -m benchmarks.bulk_client HOST PORT [--socks HOST:PORT | --library FILE] [--download N] [--upload N]

The lab's own client ends its side at once when it has nothing to send; a half-closed connection is another case (MPTCP
for example opens no subflow on one). Prints its result as one line of JSON, and ends with 0 if every byte was right;
`machine_s` and `client_s` in it are processor seconds from the request to the end, of everything and of this process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.client_way import Spent, add_arguments, connect, end
from msocks.errors import MsocksError
from msocks_lab.arrival import ArrivalMeter
from msocks_lab.errors import TransferError
from msocks_lab.transfer import RECEIVE_SIZE, Receipt, TransferRequest, read_line, receive_pattern, send_pattern


def _transfer(connection: socket.socket, options: argparse.Namespace, meter: ArrivalMeter) -> dict[str, Any]:
    """Both directions at once, to their ends. Raises TransferError, OSError."""
    verify = not options.no_verify
    request = TransferRequest(
        download=options.download,
        upload=options.upload,
        seed=options.seed,
        id=options.id,
        rate=options.rate,
        verify=verify,
    )
    began, spent = time.monotonic(), Spent()
    connection.sendall(request.encode())
    digest, failures = "", list[OSError]()

    def upload() -> None:
        nonlocal digest
        try:
            digest = send_pattern(connection, request.seed, request.upload, request.rate, verify)
        except OSError as error:
            failures.append(error)

    sender = threading.Thread(target=upload, daemon=True)
    sender.start()
    down = receive_pattern(connection, request.seed, request.download, meter, verify)
    if down.error:
        raise TransferError(down.error)
    sender.join()
    if failures:
        raise failures[0]
    if options.no_receipt:
        connection.shutdown(socket.SHUT_WR)
        _read_to_end(connection)
        return {"seconds": time.monotonic() - began, "download": asdict(down), **spent.so_far()}
    up = Receipt(**json.loads(read_line(connection)))  # before our own end: some proxies end both directions then
    connection.shutdown(socket.SHUT_WR)
    if up.error or up.bytes != request.upload or up.sha256 != digest:
        raise TransferError(f"The server got {up.bytes} of {request.upload} bytes. {up.error}")
    if connection.recv(1):
        raise TransferError("The server sent more than was asked for")
    seconds = time.monotonic() - began
    return {"began": began, "seconds": seconds, "download": asdict(down), "upload": asdict(up), **spent.so_far()}


def _read_to_end(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while connection.recv(RECEIVE_SIZE):
            pass


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bulk_client", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--download", type=int, default=0, metavar="BYTES")
    parser.add_argument("--upload", type=int, default=0, metavar="BYTES")
    parser.add_argument("--seed", type=int, default=1, help="of the pattern")
    parser.add_argument("--rate", type=int, default=0, metavar="BYTES", help="per second, at most, in each direction")
    parser.add_argument("--no-verify", action="store_true", help="do not look at the bytes")
    parser.add_argument(
        "--no-receipt",
        action="store_true",
        help="do not ask the server what it got: some proxies end both directions at the first FIN",
    )
    parser.add_argument("--id", default="", help="names the server's record")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="without any progress")
    parser.add_argument("--record", type=Path, metavar="FILE", help="when the bytes arrived")
    return parser.parse_args()


def main() -> None:
    """See the module."""
    options = _arguments()
    meter = ArrivalMeter()
    result: dict[str, Any] = {"error": ""}
    try:
        with connect(options, options.timeout) as connection:
            result |= _transfer(connection, options, meter)
    except (OSError, ValueError, TransferError, MsocksError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    end(result, meter, options.record)


if __name__ == "__main__":
    main()
