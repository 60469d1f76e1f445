"""What a pattern client and a pattern server do with one connection, and how they agree on it.

The client sends one line, a `TransferRequest` in JSON; then both work at the same time. The server sends `download`
bytes of the pattern, the client `upload` bytes. When the server has them it sends one line of JSON, its `Receipt`. Then
both close.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from msocks_lab.arrival import ArrivalMeter
from msocks_lab.errors import TransferError
from msocks_lab.pattern import CHUNK, Pattern, PatternVerifier

RECEIVE_SIZE = 1 << 20
_LONGEST_LINE = 4096
_PIECES_PER_SECOND = 50


class HalfClose(StrEnum):
    """Who sends a FIN while the other one may still be sending."""

    NEITHER = "neither"
    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What a client asks for.

    `id` names the server's record of arrivals. `rate` limits what either side sends, in bytes per second, 0 for no
    limit. `echo` lets the server send back whatever comes, instead of anything else. By `half_close` the client sends
    its FIN right after the upload, and the server waits for it; or the server right after the download, and sends no
    receipt. `abort_after` lets the server reset the connection after so many bytes of the download. Without `verify`
    nobody looks at the bytes, which is for measuring throughput.
    """

    download: int = 0
    upload: int = 0
    seed: int = 1
    id: str = ""
    rate: int = 0
    echo: bool = False
    half_close: HalfClose = HalfClose.NEITHER
    abort_after: int = 0
    verify: bool = True

    def encode(self) -> bytes:
        """The line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """The reverse. Raises TransferError."""
        try:
            fields = json.loads(line)
            return cls(**{**fields, "half_close": HalfClose(fields.get("half_close", "neither"))})
        except (ValueError, TypeError, AttributeError) as error:
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
    connection: socket.socket, seed: int, length: int, meter: ArrivalMeter, verify: bool = True
) -> Receipt:
    """Receive the first `length` bytes of a pattern.

    Wrong bytes end it with an `error`, as does a FIN before `length`. Raises OSError where the connection breaks.
    """
    verifier, digest = PatternVerifier(seed), hashlib.sha256()
    buffer = memoryview(bytearray(RECEIVE_SIZE))
    while meter.total < length:
        count = connection.recv_into(buffer, min(RECEIVE_SIZE, length - meter.total))
        if not count:
            break
        meter.add(count)
        if verify:
            digest.update(buffer[:count])
            try:
                verifier.feed(buffer[:count])
            except TransferError as error:
                return Receipt(meter.total, digest.hexdigest(), str(error))
    return Receipt(
        meter.total,
        digest.hexdigest() if verify else "",
        f"The stream ended after {meter.total} of {length} bytes" if meter.total < length else "",
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
            if request.half_close is HalfClose.CLIENT:
                connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            failures.append(error)

    sender = threading.Thread(target=upload, daemon=True)
    sender.start()
    down = receive_pattern(connection, request.seed, request.download, meter, request.verify)
    if down.error:
        raise TransferError(down.error)
    if request.half_close is HalfClose.SERVER:
        expect_end(connection)
        sender.join()
        up = Receipt(request.upload, sent_digest)
    else:
        up = Receipt(**json.loads(read_line(connection)))
        sender.join()
    if failures:
        raise failures[0]
    if up.error or up.bytes != request.upload or up.sha256 != sent_digest:
        raise TransferError(f"The server got {up.bytes} of {request.upload} bytes. {up.error}")
    if request.half_close is HalfClose.NEITHER:
        connection.shutdown(socket.SHUT_WR)
    if request.half_close is not HalfClose.SERVER:
        expect_end(connection)
    return down, up


def expect_end(connection: socket.socket) -> None:
    """Wait for the other side's FIN. Raises TransferError where anything else comes, OSError where it breaks."""
    if connection.recv(1):
        raise TransferError("The other side sent more than was agreed")


def run_server(connection: socket.socket, request: TransferRequest, meter: ArrivalMeter) -> Receipt:
    """Do the server's part; what came up, which `meter` records.

    Raises OSError where the connection breaks, TransferError where more came than was agreed.
    """
    failures: list[OSError] = []

    def download() -> None:
        length = request.abort_after or request.download
        try:
            send_pattern(connection, request.seed, length, request.rate, verify=False)
            if request.abort_after:
                abort(connection)
            elif request.half_close is HalfClose.SERVER:
                connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            failures.append(error)

    sender = threading.Thread(target=download, daemon=True)
    sender.start()
    receipt = receive_pattern(connection, request.seed, request.upload, meter, request.verify)
    sender.join()
    if failures:
        raise failures[0]
    if request.half_close is HalfClose.CLIENT:
        expect_end(connection)
    if request.half_close is not HalfClose.SERVER:
        connection.sendall(json.dumps(asdict(receipt)).encode() + b"\n")
    if request.half_close is not HalfClose.CLIENT:
        expect_end(connection)
    return receipt


def abort(connection: socket.socket) -> None:
    """Reset a connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
