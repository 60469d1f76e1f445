"""One edge-triggered epoll on raw non-blocking sockets, nested in the asyncio loop.

The byte paths (handshakes, legs, relays) use raw sockets for two reasons: they need the descriptor itself (SIOCINQ,
SIOCOUTQ, TCP_INFO, SO_BINDTODEVICE), and a lean path costs few system calls and few objects per connection. An epoll
descriptor is itself pollable, so the asyncio loop watches this one epoll and everything else (timers, TLS, DNS, the
control API) stays ordinary asyncio.

Edge-triggered and registered once for both directions: a socket costs one ``epoll_ctl`` in its life, and a leg that is
kept for draining after a reset does not wake the loop again and again.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable

READABLE = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
FAILED = select.EPOLLERR | select.EPOLLHUP

BEYOND_A_SHORT_READ = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
"""After one of these a stream socket must be read until EAGAIN or its end.

Without, fewer bytes than asked for mean that the queue is empty (epoll(7)), and what comes to it later is reported as a
change. What cuts a read short with more behind it is the end of the stream, an error, or an urgent byte (RFC 9293
section 3.8.5): each is reported here, with the bytes before it where it had come when they were reported, else as a
change of its own.
"""

_EVERYTHING = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_BATCH = 256


class Reactor:
    """Calls back when a watched descriptor changes.

    A callback gets the epoll event mask. Being edge-triggered, it is told of a *change* only: it must read or write
    until the kernel answers EAGAIN (or see `BEYOND_A_SHORT_READ`), or ask for another turn with :meth:`call_soon`. A
    callback that raises is reported to the asyncio loop's exception handler and disturbs no other descriptor.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._newcomers: set[int] = set()  # registered since the last poll: what it reported was about a predecessor
        self._soon: deque[Callable[[], None]] = deque()
        self._turn_scheduled = False
        loop.add_reader(self._epoll.fileno(), self._turn)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def watch(self, fd: int, callback: Callable[[int], None]) -> None:
        """Report every change of `fd` to `callback`, beginning with its present state.

        A descriptor that is watched already changes hands: its new owner is told of the present state as well.
        """
        if fd in self._callbacks:
            self._epoll.modify(fd, _EVERYTHING)
        else:
            self._epoll.register(fd, _EVERYTHING)
            self._newcomers.add(fd)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call it before the descriptor is closed. Unknown descriptors are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Like `unwatch`, for a descriptor that is closed next: closing ends the kernel's watch too."""
        self._callbacks.pop(fd, None)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` in the next turn, after the descriptors that are ready now had theirs."""
        self._soon.append(callback)
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def close(self) -> None:
        """Stop watching. Sockets stay open: they belong to whoever registered them."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()
        self._soon.clear()

    def _turn(self) -> None:
        if self._epoll.closed:
            return
        self._turn_scheduled = False
        pending, self._soon = self._soon, deque()
        newcomers, callbacks = self._newcomers, self._callbacks
        newcomers.clear()
        for fd, events in self._epoll.poll(0, _BATCH):
            callback = callbacks.get(fd)
            # An earlier callback of this batch may have let go of it, and a new socket may have got its number.
            if callback is not None and fd not in newcomers:
                try:
                    callback(events)
                except Exception as error:
                    self._report(error)
        for deferred in pending:
            try:
                deferred()
            except Exception as error:
                self._report(error)

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a socket's callback failed", "exception": error})
