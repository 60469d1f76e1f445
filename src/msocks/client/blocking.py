"""A blocking socket whose connection moves: `msocks.create_connection`.

The object is a real `socket.socket` (select, settimeout, makefile and ssl.wrap_socket work): one end of a Unix socket
pair. The other end is pumped, in a background thread that all connections of the process share, to the mobile leg. A
program that wants no such hop uses `msocks.open_connection`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from msocks.client.access import Access, resolve_access
from msocks.client.coupled_socket import CoupledSocket
from msocks.client.events import Event
from msocks.client.shared_node import shared_node
from msocks.values.endpoint import Endpoint

T = TypeVar("T")


class _Background:
    """The thread with the event loop of all blocking connections; it dies with the process."""

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def loop(cls) -> asyncio.AbstractEventLoop:
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(target=cls._loop.run_forever, name="msocks", daemon=True).start()
            return cls._loop

    @classmethod
    def run(cls, coroutine: Coroutine[Any, Any, T], timeout: float | None) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, cls.loop())
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise


class MobileSocket(socket.socket):
    """A connected stream socket (see the module) that also knows where its connection runs, and can move it.

    After the connection has ended with an error, recv() raises it where a plain socket would raise ECONNRESET.
    """

    _coupling: CoupledSocket

    @classmethod
    def _made(cls, near: socket.socket, coupling: CoupledSocket) -> Self:
        made = cls(near.family, near.type, near.proto, fileno=near.detach())
        made._coupling = coupling
        return made

    @property
    def session(self) -> str:
        """The session's id, 32 hexadecimal digits."""
        return self._coupling.connection.session.hex()

    @property
    def link(self) -> str | None:
        """The name of the network interface that carries the connection now."""
        return self._coupling.connection.link

    def move(self, link: str, timeout: float | None = 30.0) -> None:
        """Carry the connection, both directions, over another link; return when it runs there.

        Raises:
            LinkUnavailable: It cannot; the connection goes on where it was.
            SessionEnded: It is over.
            TimeoutError: It did not come about within `timeout` seconds.
        """
        _Background.run(self._coupling.connection.move(link), timeout)

    def on_event(self, listener: Callable[[Event], None] | None) -> None:
        """Have `listener` called, in the background thread, with every Moved, Parked, Resumed and Ended from now on."""
        self._coupling.listener = listener

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """As `socket.socket.recv`; raises the connection's error instead of telling an end that it has not."""
        data = super().recv(bufsize, flags)
        if not data and bufsize:
            self._raise_error()
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As `socket.socket.recv_into`, with the same difference as `recv`."""
        count = super().recv_into(buffer, nbytes, flags)
        if not count and memoryview(buffer).nbytes:
            self._raise_error()
        return count

    def getpeername(self) -> tuple[str, int]:
        """The server, as it was given to create_connection()."""
        destination = self._coupling.connection.destination
        return (str(destination.host), destination.port)

    def _raise_error(self) -> None:
        if self._coupling.error is not None:
            raise self._coupling.error


def create_connection(
    address: tuple[str, int], timeout: float | None = None, *, access: Access = None, link: str | None = None
) -> MobileSocket:
    """Open a TCP connection that outlives its network; like `socket.create_connection`.

    Args:
        address: The server's name or address, and its port. A name is resolved by the proxy.
        timeout: Seconds for connecting, and then for the socket's operations; None for no limit.
        access: An access link or a path of a file with one; by default what $MSOCKS_ACCESS_FILE names.
        link: Carry it over this network interface if that can be used.

    Raises:
        DestinationError: The proxy cannot or may not connect to the server.
        AuthenticationError: The proxy did not accept the access link, or is not the one that it names.
        ConfigurationError: The arguments cannot be used.
        TimeoutError: The connection did not stand in time.
    """
    destination = Endpoint.of(*address)
    resolved = resolve_access(access)
    near, far = socket.socketpair()
    far.setblocking(False)

    async def connect() -> CoupledSocket:
        node = await shared_node(resolved)
        coupling = CoupledSocket(node, far, destination)
        try:
            await node.connect(coupling.connection, link=link)
        except BaseException:
            coupling.abort()
            raise
        coupling.start()
        return coupling

    try:
        coupling = _Background.run(connect(), timeout)
    except BaseException:
        near.close()
        raise
    made = MobileSocket._made(near, coupling)
    made.settimeout(timeout)
    return made
