"""Connections that come in at the proxy, over a mobile node: `msocks.listen`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from msocks.client.access import Access, resolve_access
from msocks.client.node import MobileNode
from msocks.client.shared_node import shared_node
from msocks.client.streams import LIMIT_BYTES, MobileStreamWriter
from msocks.errors import InvalidState, MsocksError
from msocks.protocol.inbound import Incoming
from msocks.session.mobile_effects import SessionState
from msocks.values.endpoint import Endpoint

BACKLOG = 128
"""So many connections that nobody has accepted are kept; one more is reset."""


class MobileListener:
    """A port of the proxy at which peers connect to this program, whatever networks it has. Made by `listen`.

    The proxy is asked for the port again whenever it, or the network, was gone. Closed by `close`, or at the end of an
    ``async with``; connections that were accepted go on.
    """

    def __init__(self, node: MobileNode, port: int, limit: int = LIMIT_BYTES) -> None:
        self._node = node
        self._limit = limit
        self._waiting: deque[tuple[asyncio.StreamReader, MobileStreamWriter]] = deque()
        self._taking: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._closed = False
        self._wanted = node.inbound.listen(port, self._on_incoming, self._news.set)

    @property
    def address(self) -> tuple[str, int]:
        """Where peers connect: the proxy's address, as far as it knows, and port. After `opened`."""
        bound = self._wanted.bound
        if bound is None:
            raise InvalidState("the proxy does not listen yet")
        return str(bound.host), bound.port

    async def opened(self) -> None:
        """Wait until the proxy listens. Raises ListenError, AuthenticationError."""
        await self._wanted.opened.wait()
        if self._wanted.error is not None:
            raise self._wanted.error

    async def accept(self) -> tuple[asyncio.StreamReader, MobileStreamWriter]:
        """The next connection: live, and mobile like any that `msocks.open_connection` has made.

        Raises:
            ListenError: The proxy has taken the port back.
            InvalidState: The listener is closed.
        """
        while True:
            while self._waiting:
                reader, writer = self._waiting.popleft()
                if writer.connection.state is not SessionState.ENDED:
                    writer.begin()
                    return reader, writer
            if self._wanted.error is not None:
                raise self._wanted.error
            if self._closed:
                raise InvalidState("the listener is closed")
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """Give the port back, and reset what nobody has accepted."""
        if self._closed:
            return
        self._closed = True
        self._node.inbound.close(self._wanted)
        for task in self._taking:
            task.cancel()
        while self._waiting:
            self._waiting.popleft()[1].transport.abort()
        self._news.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.close()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _on_incoming(self, incoming: Incoming) -> None:
        if len(self._waiting) + len(self._taking) >= BACKLOG:
            self._node.close_session(incoming.session, 1)
            return
        task = asyncio.get_running_loop().create_task(self._take(incoming))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _take(self, incoming: Incoming) -> None:
        reader, writer = MobileStreamWriter.of(self._node, incoming.peer, self._limit, incoming)
        try:
            await self._node.connect(writer.connection)
        except MsocksError:
            return  # it is over at the proxy: the peer has gone, or has waited too long
        except BaseException:
            writer.transport.abort()
            raise
        self._waiting.append((reader, writer))
        self._news.set()


async def listen(
    port: int = 0, *, access: Access = None, limit: int = LIMIT_BYTES, node: MobileNode | None = None
) -> MobileListener:
    """Listen at a port of the proxy, and wait until it does; the connections that come in outlive their network.

    Args:
        port: Which port, 1 to 65535; 0 for any that the proxy's operator lets this user have.
        access: An access link or a path of a file with one; by default what $MSOCKS_ACCESS_FILE names.
        limit: Buffer limit of the readers in bytes.
        node: A `MobileNode` to use; by default one per event loop and access link.

    Raises:
        ListenError: The proxy does not: its operator allows it not, or the port is in use.
        AuthenticationError: The proxy did not accept the access link, or is not the one that it names.
        ConfigurationError: There is no access link, or no such port.
    """
    Endpoint.of("0.0.0.0", port or 1)
    if node is None:
        node = await shared_node(resolve_access(access))
    listener = MobileListener(node, port, limit)
    try:
        await listener.opened()
    except BaseException:
        listener.close()
        raise
    return listener
