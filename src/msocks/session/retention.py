"""Bytes sent and not yet known to have arrived: kept, so that the next leg can begin where the last one got to.

Offsets are absolute in the direction's stream: the first byte a program ever wrote has offset 0. A FIN has none.
"""

from __future__ import annotations

from collections import deque

from msocks.session.byte_budget import ByteBudget

_COALESCE_BELOW = 4096  # single-byte writes would otherwise cost an object each
_SEND_BATCH = 256 * 1024


def acknowledged_bytes(written: int, unacknowledged: int, fin_sent: bool) -> int:
    """How many of the `written` bytes of one socket its peer has ACKed, by SIOCOUTQ (`unacknowledged`).

    A FIN occupies the last place of the sequence space (RFC 9293 section 3.4): as long as anything is un-ACKed after
    it was sent, it is, and SIOCOUTQ counts it as one.
    """
    outstanding = unacknowledged - (1 if fin_sent and unacknowledged else 0)
    return written - min(written, outstanding)


class RetentionMarks:
    """Three marks in a stream: ``base <= sent <= end``. Where the bytes lie, who inherits knows.

    [base, sent) was handed to the kernel of the current leg and may be lost with it; [sent, end) waits. `base` only
    grows, by :meth:`release`; `sent` goes back when a new leg begins, by :meth:`rewind`.
    """

    __slots__ = ("_budget", "base", "end", "sent")

    def __init__(self, budget: ByteBudget | None) -> None:
        """What is held counts in `budget`."""
        self._budget = budget
        self.base = 0
        self.sent = 0
        self.end = 0

    @property
    def retained(self) -> int:
        """Bytes held in memory."""
        return self.end - self.base

    @property
    def unsent(self) -> int:
        """Bytes that no leg has taken yet."""
        return self.end - self.sent

    def release(self, offset: int) -> None:
        """Forget everything before `offset`: it has arrived. Offsets at or before `base` change nothing.

        Raises ValueError when `offset` lies beyond what was ever written.
        """
        if offset > self.end:
            raise ValueError(f"offset {offset} was acknowledged, but only {self.end} bytes were ever written")
        if offset <= self.base:
            return
        if self._budget is not None:
            self._budget.give_back(offset - self.base)
        self.base = offset
        self._released(offset)

    def discard(self) -> None:
        """Let go of everything: no leg will come any more."""
        self.release(self.end)
        self._budget = None

    def rewind(self, offset: int) -> None:
        """Begin anew at `offset` for a new leg.

        Raises ValueError unless ``base <= offset <= end``: bytes before the base are gone.
        """
        if not self.base <= offset <= self.end:
            raise ValueError(f"cannot begin a leg at offset {offset}: bytes {self.base} to {self.end} are retained")
        self._rewound(offset)

    def _grown(self, count: int) -> None:
        self.end += count
        if self._budget is not None:
            self._budget.take(count)

    def _released(self, offset: int) -> None:
        """Forget the bytes themselves; `sent` may lie before `offset`, the new base."""
        raise NotImplementedError

    def _rewound(self, offset: int) -> None:
        """Set `sent`."""
        raise NotImplementedError


class Retention(RetentionMarks):
    """A byte queue in memory."""

    __slots__ = ("_chunks", "_cursor", "_cursor_offset", "_first_offset", "_skip")

    def __init__(self, budget: ByteBudget | None = None) -> None:
        """What is held counts in `budget`."""
        super().__init__(budget)
        self._skip = 0  # bytes that are still to be appended, and have arrived already
        self._chunks: deque[bytes] = deque()
        # A chunk that has arrived in part is kept whole: cutting it would copy the rest.
        self._first_offset = 0
        # The chunk that holds `sent`, counted from the left, and the stream offset of its first byte.
        self._cursor = 0
        self._cursor_offset = 0

    def begin_at(self, offset: int) -> None:
        """Everything before `offset` has arrived already. While nothing was appended."""
        self.base = self.sent = self.end = self._first_offset = self._cursor_offset = offset

    def append(self, data: bytes) -> None:
        """Add `data` at the end of the stream."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if not data:
            return
        last = len(self._chunks) - 1
        if last > self._cursor and len(self._chunks[last]) + len(data) <= _COALESCE_BELOW:
            self._chunks[last] += data
        else:
            self._chunks.append(data)
        self._grown(len(data))

    def next_unsent(self) -> memoryview | None:
        """The next bytes for the current leg, or None when it has them all. Call :meth:`mark_sent` for what it took."""
        if self.sent == self.end:
            return None
        chunk = self._chunks[self._cursor]
        begin = self.sent - self._cursor_offset
        return memoryview(chunk)[begin : begin + _SEND_BATCH]

    def mark_sent(self, count: int) -> None:
        """The leg's kernel has taken `count` bytes of what :meth:`next_unsent` showed."""
        self.sent += count
        while self._cursor < len(self._chunks):
            length = len(self._chunks[self._cursor])
            if self._cursor_offset + length > self.sent:
                break
            self._cursor_offset += length
            self._cursor += 1

    def _released(self, offset: int) -> None:
        while self._chunks and self._first_offset + len(self._chunks[0]) <= offset:
            self._first_offset += len(self._chunks.popleft())
            self._cursor -= 1
        if self.sent < offset or self._cursor < 0:
            self.rewind(max(self.sent, offset))

    def skip_to(self, offset: int) -> None:
        """Begin anew beyond the end: what is between has arrived already, and is dropped when it is appended."""
        self.release(self.end)
        self._skip += offset - self.end
        self._cursor = 0
        self.begin_at(offset)

    def _rewound(self, offset: int) -> None:
        self._cursor = 0
        self._cursor_offset = self.sent = self._first_offset
        self.mark_sent(offset - self._first_offset)
