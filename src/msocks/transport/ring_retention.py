"""Retention in memory that outlives the process: bytes sent and not known to have arrived, in a ring.

The kernel writes what it reads from a socket into the ring itself, in the system call that takes it from the socket. So
there is no moment at which a process that is killed has bytes that nobody else has. The byte of stream offset `n` lies
at `n` modulo the ring's size; where the ring begins and ends, kernel and flow memory tell.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
from collections.abc import Callable

from msocks.session.byte_budget import ByteBudget
from msocks.session.retention import RetentionMarks

_SEND_BATCH = 256 * 1024
# What has arrived is given back to the kernel in pieces of this size, and what is left when nothing is retained.
_TRIM_BYTES = 1024 * 1024
_TRIM_WHEN_EMPTY_BYTES = 64 * 1024


class RingRetention(RetentionMarks):
    """Has the interface of `msocks.session.retention.Retention`, over `size` bytes of `memory` from `begins` on.

    Both are multiples of the page size. `on_base` is called with a new base before the room behind it is used again.
    """

    def __init__(
        self, memory: mmap.mmap, begins: int, size: int, on_base: Callable[[int], None], budget: ByteBudget | None
    ) -> None:
        super().__init__(budget)
        self._memory = memory
        self._view = memoryview(memory)
        self._begins = begins
        self._size = size
        self._on_base = on_base
        self._trimmed = 0  # nothing before takes up memory

    def resume_at(self, base: int, sent: int, end: int) -> None:
        """Go on with what another process has left. Before anything is appended. Raises ValueError if it cannot be."""
        if not 0 <= base <= sent <= end <= base + self._size:
            raise ValueError(f"bytes {base} to {end}, sent up to {sent}, are no state of a ring of {self._size}")
        self.base, self.sent, self.end = base, sent, end
        self._trimmed = base - base % mmap.PAGESIZE
        if self._budget is not None:
            self._budget.take(self.retained)

    @property
    def free(self) -> int:
        """Bytes that the ring has room for."""
        return self._size - self.retained

    def take_from(self, sock: socket.socket, at_most: int) -> int:
        """Append what `sock` has; how many bytes, 0 at its end. Raises as recv_into() does."""
        at_most = min(at_most, self.free)
        first = min(at_most, self._size - self.end % self._size)
        count = self._read(sock, first)
        if count == first < at_most:  # the ring's end: a short read would say that there is no more
            with contextlib.suppress(BlockingIOError):
                count += self._read(sock, at_most - first)
        return count

    def _read(self, sock: socket.socket, at_most: int) -> int:
        at = self._begins + self.end % self._size
        count = sock.recv_into(self._view[at : at + at_most])
        self._grown(count)
        return count

    def append(self, data: bytes) -> None:
        """Add `data`, for which there is room, at the end of the stream."""
        if len(data) > self.free:
            raise ValueError(f"{len(data)} bytes for a ring with room for {self.free}")
        at = self.end % self._size
        first = min(len(data), self._size - at)
        self._view[self._begins + at : self._begins + at + first] = data[:first]
        self._view[self._begins : self._begins + len(data) - first] = data[first:]
        self._grown(len(data))

    def next_unsent(self) -> memoryview | None:
        """See `Retention`."""
        if self.sent == self.end:
            return None
        at = self.sent % self._size
        count = min(self.unsent, _SEND_BATCH, self._size - at)
        return self._view[self._begins + at : self._begins + at + count]

    def mark_sent(self, count: int) -> None:
        """See `Retention`."""
        self.sent += count

    def _released(self, offset: int) -> None:
        self.sent = max(self.sent, offset)
        self._on_base(offset)
        if offset - self._trimmed >= (_TRIM_BYTES if self.retained else _TRIM_WHEN_EMPTY_BYTES):
            self._trim()

    def _rewound(self, offset: int) -> None:
        self.sent = offset

    def _trim(self) -> None:
        end = self.base - self.base % mmap.PAGESIZE
        while self._trimmed < end:
            at = self._trimmed % self._size
            count = min(end - self._trimmed, self._size - at)
            self._memory.madvise(mmap.MADV_REMOVE, self._begins + at, count)
            self._trimmed += count

    def begin_at(self, offset: int) -> None:
        """See `Retention`."""
        self.resume_at(offset, offset, offset)

    def skip_to(self, offset: int) -> None:
        """See `Retention`; raises ValueError: at the mobile node no other way brings anything."""
        raise ValueError(f"bytes {self.end} to {offset} were never written")
