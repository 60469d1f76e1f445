"""A TCP server in a test's own process that leaves no connection behind, not even one that is just being accepted.

`asyncio.Server` does: a connection that it has accepted in the turn of the loop in which it is closed gets no transport
any more, and only a warning of the garbage collector, in whatever test runs by then, tells of its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

Service = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(
    listener: socket.socket, service: Service, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Callable[[], None]]:
    """Let `service` have every connection to `listener`, which is closed at the end together with all of them.

    What a service still does then is cancelled. Yields what closes `listener` sooner; connections stay.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    sockets: list[socket.socket] = []
    transports: list[tuple[asyncio.Transport, socket.socket]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await service(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    async def take(sock: socket.socket) -> None:
        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)

        with contextlib.suppress(OSError):  # the client has gone, or speaks no TLS
            transport, _ = await loop.connect_accepted_socket(protocol, sock, ssl=tls)
            transports.append((transport, sock))

    def accept() -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, _ = listener.accept()
            sock.setblocking(False)
            sockets.append(sock)
            task = loop.create_task(take(sock))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def close() -> None:
        if listener.fileno() >= 0:
            loop.remove_reader(listener)
            listener.close()

    listener.setblocking(False)
    loop.add_reader(listener, accept)
    try:
        yield close
    finally:
        close()
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for transport, sock in transports:
            if sock.fileno() >= 0:  # asyncio cannot abort one that has written its last byte and closed
                transport.abort()  # who does not read any more would not let it close
        await asyncio.sleep(0)
        for sock in sockets:
            sock.close()  # those that got no transport
