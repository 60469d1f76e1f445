"""One leg of a stream, with what has to be remembered of it."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

from msocks.session.retention import acknowledged_bytes
from msocks.transport.kernel import bytes_unacknowledged, bytes_unread, reset_on_close
from msocks.transport.reactor import BEYOND_A_SHORT_READ, FAILED, READABLE

_DISCARD_BYTES = 256 * 1024


@dataclass(slots=True, eq=False)
class Leg:
    """A connected socket and where the two streams are on it; offsets are absolute, in bytes.

    Attributes:
        early: Inbound stream bytes that were read together with the handshake.
        handed_over: A successor begins where this leg ends: its FIN ends the leg, not the stream.
        failed: The connection is dead; what its queue holds stays readable.
        begins_at: Offset of the first outbound byte on this leg.
        overhead: Bytes written before that one: the leg's request or reply.
        fin_sent: Whether the FIN follows the outbound bytes already.
        sent_until: Offset up to which the kernel took outbound bytes, once the leg sends no more.
        split: What is ACKed on it was ACKed by a middlebox: only the other end's word tells what has arrived.
        read_empty: Nothing is left in the receive queue until the reactor reports a change, see `note`.
        ending: The reactor has reported what a short read does not show, see `reactor.BEYOND_A_SHORT_READ`.
    """

    sock: socket.socket
    generation: int
    early: bytes = b""
    failed: bool = False
    handed_over: bool = False
    begins_at: int = 0
    overhead: int = 0
    fin_sent: bool = False
    sent_until: int = 0
    split: bool = False
    read_empty: bool = False
    ending: bool = False

    def unread(self) -> int:
        """Inbound bytes that this side's kernel has ACKed and nobody has read."""
        return len(self.early) + bytes_unread(self.sock)

    def note(self, events: int) -> OSError | None:
        """Take in what the reactor reports, before anything is read; returns the error that the connection died of."""
        if events & READABLE:
            self.read_empty = False
        if events & BEYOND_A_SHORT_READ:
            self.ending = True
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & FAILED else 0
        return OSError(code, os.strerror(code)) if code else None

    def receive(self, at_most: int) -> bytes | None:
        """Read inbound bytes; b"" at the end of the connection, None when there is nothing now.

        Raises OSError as recv() does, BlockingIOError excepted.
        """
        if self.early:
            data, self.early = self.early[:at_most], self.early[at_most:]
            return data
        if self.read_empty:
            return None
        try:
            data = self.sock.recv(at_most)
        except BlockingIOError:
            return None
        self.read_empty = 0 < len(data) < at_most and not self.ending
        return data

    def peek(self, at_most: int) -> bytes | None:
        """As `receive`, but what is returned stays in the kernel. Only without `early`."""
        try:
            return self.sock.recv(at_most, socket.MSG_PEEK)
        except BlockingIOError:
            return None

    def consume(self, count: int) -> None:
        """Take `count` bytes, which `peek` has shown, out of the kernel (MSG_TRUNC, tcp(7): without a copy)."""
        while count > 0:
            count -= len(self.sock.recv(count, socket.MSG_TRUNC))

    def receive_is_empty(self) -> bool:
        """Whether nothing is left to read."""
        return self.unread() == 0

    def acknowledged_until(self, sent: int) -> int:
        """Offset up to which the peer's kernel has ACKed, when the leg has taken everything before `sent`."""
        written = self.overhead + sent - self.begins_at
        acked = acknowledged_bytes(written, bytes_unacknowledged(self.sock), self.fin_sent)
        return self.begins_at + max(0, acked - self.overhead)

    def all_acknowledged(self) -> bool:
        """Whether the FIN was sent and ACKed, and so everything before it."""
        return not self.failed and self.fin_sent and bytes_unacknowledged(self.sock) == 0

    def close(self) -> None:
        """Close the connection: with RST, or after a handover by an orderly end, which ACKs what came last."""
        with contextlib.suppress(OSError):
            if self.handed_over and not self.failed:
                reset_on_close(self.sock, False)
            self.sock.close()

    def discard(self) -> None:
        """Read away what repeats the stream behind its end: a leg that is closed unread is reset."""
        with contextlib.suppress(OSError):
            while self.sock.recv(_DISCARD_BYTES):
                pass
