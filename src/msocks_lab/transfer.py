"""What a pattern client and a pattern server do with one connection, and how they agree on it.

The client sends one line, a `TransferRequest` in JSON; then both work at the same time. The server sends `download`
bytes of the pattern, the client `upload` bytes and a FIN. Then the server sends one line of JSON, its `Receipt` for
the upload, and a FIN.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from dataclasses import asdict, dataclass
from typing import Self

from msocks_lab.arrival import ArrivalMeter
from msocks_lab.errors import TransferError
from msocks_lab.pattern import CHUNK, Pattern, PatternVerifier

RECEIVE_SIZE = 1 << 20
_LONGEST_LINE = 4096
_PIECES_PER_SECOND = 50


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What a client asks for.

    `id` names the server's record of arrivals. `rate` limits what either side sends, in bytes per second, 0 for no
    limit. `echo` lets the server send back whatever comes, instead of anything else. With `half_close` the server
    sends its FIN right after the download, and no receipt. `abort_after` lets it reset the connection after so many
    bytes of the download. Without `verify` nobody looks at the bytes, which is for measuring throughput.
    """

    download: int = 0
    upload: int = 0
    seed: int = 1
    id: str = ""
    rate: int = 0
    echo: bool = False
    half_close: bool = False
    abort_after: int = 0
    verify: bool = True

    def encode(self) -> bytes:
        """The line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """The reverse. Raises TransferError."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise TransferError(f"Not a transfer request: {line[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a receiver got: `sha256` is of all of it (empty without verification), `error` says what was wrong."""

    bytes: int
    sha256: str
    error: str = ""


def read_line(connection: socket.socket) -> bytes:
    """One line, without a byte of what follows it. Raises TransferError."""
    while True:
        seen = connection.recv(_LONGEST_LINE, socket.MSG_PEEK)
        if not seen:
            raise TransferError("The connection ended before its first line")
        end = seen.find(b"\n")
        if end >= 0:
            return connection.recv(end + 1, socket.MSG_WAITALL)
        if len(seen) >= _LONGEST_LINE:
            raise TransferError("The first line is too long")
        time.sleep(0.001)  # a part of the line is there: more would not wake a peek


def send_pattern(connection: socket.socket, seed: int, length: int, rate: int = 0, verify: bool = True) -> str:
    """Send the first `length` bytes of a pattern; their SHA-256, or "" without `verify`."""
    pattern, digest = Pattern(seed), hashlib.sha256()
    began, sent = time.monotonic(), 0
    piece = max(1, min(CHUNK, rate // _PIECES_PER_SECOND)) if rate else CHUNK
    while sent < length:
        data = pattern.at(sent, min(piece, length - sent))
        connection.sendall(data)
        if verify:
            digest.update(data)
        sent += len(data)
        if rate:
            time.sleep(max(0.0, began + sent / rate - time.monotonic()))
    return digest.hexdigest() if verify else ""


def receive_pattern(
    connection: socket.socket, seed: int, length: int | None, meter: ArrivalMeter, verify: bool = True
) -> Receipt:
    """Receive `length` bytes of a pattern, or for None all up to the FIN.

    Wrong bytes end it with an `error`, as does a FIN before `length`. Raises OSError where the connection breaks.
    """
    verifier, digest = PatternVerifier(seed), hashlib.sha256()
    buffer = memoryview(bytearray(RECEIVE_SIZE))
    while length is None or meter.total < length:
        room = RECEIVE_SIZE if length is None else min(RECEIVE_SIZE, length - meter.total)
        count = connection.recv_into(buffer, room)
        if not count:
            break
        meter.add(count)
        if verify:
            digest.update(buffer[:count])
            try:
                verifier.feed(buffer[:count])
            except TransferError as error:
                return Receipt(meter.total, digest.hexdigest(), str(error))
    short = length is not None and meter.total < length
    return Receipt(
        meter.total,
        digest.hexdigest() if verify else "",
        f"The stream ended after {meter.total} of {length} bytes" if short else "",
    )


def run_client(connection: socket.socket, request: TransferRequest, meter: ArrivalMeter) -> tuple[Receipt, Receipt]:
    """Do the client's part; what came down, and the server's receipt for what went up.

    `meter` records the download. Raises TransferError where anything is not as it was sent, OSError where the
    connection breaks.
    """
    connection.sendall(request.encode())
    failures: list[OSError] = []
    sent_digest = ""

    def upload() -> None:
        nonlocal sent_digest
        try:
            sent_digest = send_pattern(connection, request.seed, request.upload, request.rate, request.verify)
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            failures.append(error)

    sender = threading.Thread(target=upload, daemon=True)
    sender.start()
    down = receive_pattern(connection, request.seed, request.download, meter, request.verify)
    if down.error:
        raise TransferError(down.error)
    if request.half_close:
        if connection.recv(1):
            raise TransferError("The server sent more than was asked for")
        sender.join()
        return down, Receipt(request.upload, sent_digest)
    up = Receipt(**json.loads(read_line(connection)))
    sender.join()
    if failures:
        raise failures[0]
    if up.error or up.bytes != request.upload or up.sha256 != sent_digest:
        raise TransferError(f"The server got {up.bytes} of {request.upload} bytes. {up.error}")
    if connection.recv(1):
        raise TransferError("The server sent more than was asked for")
    return down, up


def run_server(connection: socket.socket, request: TransferRequest, meter: ArrivalMeter) -> Receipt:
    """Do the server's part; what came up, which `meter` records. Raises OSError where the connection breaks."""
    failures: list[OSError] = []

    def download() -> None:
        length = request.abort_after or request.download
        try:
            send_pattern(connection, request.seed, length, request.rate, verify=False)
            if request.abort_after:
                abort(connection)
            elif request.half_close:
                connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            failures.append(error)

    sender = threading.Thread(target=download, daemon=True)
    sender.start()
    receipt = receive_pattern(connection, request.seed, None, meter, request.verify)
    sender.join()
    if failures:
        raise failures[0]
    if not request.half_close:
        connection.sendall(json.dumps(asdict(receipt)).encode() + b"\n")
    return receipt


def abort(connection: socket.socket) -> None:
    """Reset a connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
