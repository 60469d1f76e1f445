"""Records on their way into the database: noted in a file at once, so that not even these die with the process.

The database is written by a thread of its own, which the processor may keep waiting for milliseconds. A line here is
one `write` into the kernel's page cache, a few microseconds, and outlives `kill -9` from there on. When all that was
noted has arrived in the database, the file is emptied.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 4 << 20
"""Of the file. Where the database cannot be written for long, what comes beyond waits in memory alone."""

Row = tuple[object, ...]


class NotedRecords:
    """See the module. Not thread-safe.

    Args:
        path: The file; made, with mode 0600, where it is missing.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def rows(self) -> Iterator[Row]:
        """What was noted and may not be in the database, oldest first. What cannot be read was torn: it is left out."""
        for line in os.pread(self._fd, self._size, 0).split(b"\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                yield tuple(map(_decoded, json.loads(line)))

    def note(self, row: Row) -> None:
        """Note one more: numbers, text and bytes. Where that fails, it waits in memory alone."""
        # What was torn before, on a full disk, must not spoil this one.
        line = b"\n" + json.dumps([_encoded(value) for value in row]).encode() + b"\n"
        if self._size + len(line) <= MOST_BYTES:
            with contextlib.suppress(OSError):
                self._size += os.write(self._fd, line)

    def clear(self) -> None:
        """All of it has arrived. Raises OSError."""
        if self._size:
            os.ftruncate(self._fd, 0)
            self._size = 0

    def close(self) -> None:
        """Let go of the file, which stays."""
        os.close(self._fd)


def _encoded(value: object) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _decoded(value: object) -> object:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
