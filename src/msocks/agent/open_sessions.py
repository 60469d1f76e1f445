"""Which sessions are open, in a file that outlives the agent: the next one has the proxy reset what nobody has now.

Without it a server would learn only when the session's time to wait is over at the proxy that its client is gone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

from msocks.values.ids import ID_BYTES, SessionId

_MAGIC = b"MSOCKS-SESSIONS1"
assert len(_MAGIC) == ID_BYTES


class OpenSessions:
    """See the module. The file is this agent's as long as it runs; it has no secrets (mode 0600 all the same)."""

    def __init__(self, path: Path, most: int) -> None:
        """Room for `most` sessions; others are not noted. The file is made where there is none.

        Raises:
            OSError: The file cannot be had, or another agent has it (BlockingIOError).
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = max(os.fstat(descriptor).st_size // ID_BYTES, most + 1) * ID_BYTES
            os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor  # holds the lock
        if self._memory[:ID_BYTES] != _MAGIC:
            self._memory[:] = _MAGIC + bytes(size - ID_BYTES)
        self._slots: dict[SessionId, int] = {}
        self._free: list[int] = []
        for at in range(size - ID_BYTES, 0, -ID_BYTES):
            value = self._memory[at : at + ID_BYTES]
            if any(value):
                self._slots[SessionId(value)] = at
            else:
                self._free.append(at)
        self.left = tuple(self._slots)
        """Those that an earlier agent has left open."""

    def add(self, session: SessionId) -> None:
        """It opens."""
        if session not in self._slots and self._free:
            at = self._slots[session] = self._free.pop()
            self._memory[at : at + ID_BYTES] = session.value

    def discard(self, session: SessionId) -> None:
        """It has ended, or the proxy is being told."""
        at = self._slots.pop(session, None)
        if at is not None:
            self._memory[at : at + ID_BYTES] = bytes(ID_BYTES)
            self._free.append(at)

    def close(self) -> None:
        """Let another agent have the file."""
        self._memory.close()
        os.close(self._descriptor)
