"""Descriptors that the service manager holds for this process, and gives to the next: sd_pid_notify_with_fds(3).

What is stored outlives `kill -9`. A socket that is stored is not closed while the manager holds it: whoever closes it
has to `remove` it as well, and whichever of the two comes last ends the connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence

from msocks.transport.reactor import WRITABLE, Reactor

_FIRST = 3  # SD_LISTEN_FDS_START
# So many messages may wait for a manager that does not listen; it holds up nobody.
_MOST_WAITING = 16384


class DescriptorStore:
    """See the module. `NOTIFY_SOCKET` tells where the manager is, `FDSTORE` how many descriptors it holds."""

    def __init__(self, reactor: Reactor, address: str) -> None:
        self._reactor = reactor
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._sock.setblocking(False)
            self._sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            self._sock.close()
            raise
        reactor.watch(self._sock.fileno(), self._on_events)

    @staticmethod
    def of_this_service(reactor: Reactor) -> DescriptorStore | None:
        """The store, where the service manager has one for this process."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")) or os.environ.get("FDSTORE", "0") in ("", "0"):
            return None
        try:
            return DescriptorStore(reactor, address)
        except OSError:
            return None

    def put(self, name: str, descriptors: Sequence[int]) -> None:
        """Have copies of `descriptors` held under `name` (letters, digits, dashes), beside those that are there."""
        # FDPOLL=0: without, the manager lets go of a connection that was reset while nobody reads it.
        message = f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0"
        self._say(message.encode(), [os.dup(descriptor) for descriptor in descriptors])

    def remove(self, name: str) -> None:
        """Have everything of that name closed."""
        self._say(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), [])

    def flush(self, timeout_s: float) -> None:
        """Say what waits now, so long at most."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(timeout_s)
            self._send_waiting()
            self._sock.setblocking(False)

    def close(self) -> None:
        """Say nothing any more; what is held stays held."""
        self._reactor.unwatch(self._sock.fileno())
        self._sock.close()
        for _, descriptors in self._waiting:
            _close_all(descriptors)
        self._waiting.clear()

    def _say(self, message: bytes, descriptors: list[int]) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            _close_all(descriptors)
            return
        self._waiting.append((message, descriptors))
        self._send_waiting()

    def _on_events(self, events: int) -> None:
        if events & WRITABLE:
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            message, descriptors = self._waiting[0]
            try:
                socket.send_fds(self._sock, [message], descriptors) if descriptors else self._sock.send(message)
            except (BlockingIOError, TimeoutError):
                return  # EPOLLOUT will tell
            except OSError:
                pass  # the manager is gone, or does not take it: then the flow is not kept
            self._waiting.popleft()
            _close_all(descriptors)


def take_inherited() -> dict[str, list[int]]:
    """What the manager has handed to this process, by name (sd_listen_fds_with_names(3)); a second call gives nothing.

    Whoever calls owns the descriptors. The manager goes on holding them, until they are removed.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    if pid != str(os.getpid()) or not count.isdecimal():
        return found
    for index in range(int(count)):
        with contextlib.suppress(OSError):
            os.set_inheritable(_FIRST + index, False)
            found.setdefault(names[index] if index < len(names) else "", []).append(_FIRST + index)
    return found


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
