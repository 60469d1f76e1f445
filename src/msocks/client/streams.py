"""asyncio streams over a mobile connection: `msocks.open_connection`."""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from collections.abc import AsyncIterator
from typing import Self, cast

from msocks.client.access import Access, resolve_access
from msocks.client.connection import Connection
from msocks.client.events import Event
from msocks.client.node import MobileNode
from msocks.client.shared_node import shared_node
from msocks.client.transport import MobileTransport
from msocks.errors import ConfigurationError
from msocks.protocol.inbound import Incoming
from msocks.values.endpoint import Endpoint

LIMIT_BYTES = 64 * 1024


class MobileStreamWriter(asyncio.StreamWriter):
    """An `asyncio.StreamWriter` that also knows where its connection runs, and can move it."""

    _mobile: MobileTransport

    @classmethod
    def of(
        cls, node: MobileNode, destination: Endpoint, limit: int, incoming: Incoming | None = None
    ) -> tuple[asyncio.StreamReader, Self]:
        """The streams of a new connection that the node does not carry yet; see `Connection` for the arguments."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport = MobileTransport(node, node.sweep, destination, protocol, incoming)
        writer = cls(transport, protocol, reader, loop)
        writer._mobile = transport
        return reader, writer

    def begin(self) -> None:
        """The connection stands, and whoever is to read it is there."""
        self._mobile.begin()

    @property
    def session(self) -> str:
        """The session's id, 32 hexadecimal digits."""
        return self._mobile.connection.session.hex()

    @property
    def link(self) -> str | None:
        """The name of the network interface that carries the connection now."""
        return self._mobile.connection.link

    @property
    def connection(self) -> Connection:
        """State, generation, moves, datapath."""
        return self._mobile.connection

    async def move(self, link: str) -> None:
        """Carry the connection, both directions, over another link; return when it runs there.

        Raises:
            LinkUnavailable: It cannot; the connection goes on where it was.
            SessionEnded: It is over.
        """
        await self._mobile.connection.move(link)

    def events(self) -> AsyncIterator[Event]:
        """Moved, Parked, Resumed and Ended as they happen; ends with the connection."""
        return self._mobile.events.follow()

    async def start_tls(
        self,
        sslcontext: ssl_module.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
    ) -> None:
        """As `asyncio.StreamWriter.start_tls`, on every event loop (uvloop's own knows only its own transports)."""
        protocol = cast(asyncio.StreamReaderProtocol, self.transport.get_protocol())
        await self.drain()
        await _wrap_tls(self, protocol, sslcontext, server_hostname, ssl_handshake_timeout)


async def _wrap_tls(
    writer: MobileStreamWriter,
    protocol: asyncio.StreamReaderProtocol,
    context: ssl_module.SSLContext,
    server_hostname: str | None,
    handshake_timeout: float | None,
) -> None:
    loop = asyncio.get_running_loop()
    transport = await asyncio.BaseEventLoop.start_tls(
        cast(asyncio.BaseEventLoop, loop),
        writer.transport,
        protocol,
        context,
        server_hostname=server_hostname,
        ssl_handshake_timeout=handshake_timeout,
    )
    assert transport is not None
    writer._transport = transport  # type: ignore[attr-defined]
    protocol._replace_writer(writer)  # type: ignore[attr-defined]


async def open_connection(
    host: str,
    port: int,
    *,
    access: Access = None,
    link: str | None = None,
    ssl: ssl_module.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    limit: int = LIMIT_BYTES,
    node: MobileNode | None = None,
) -> tuple[asyncio.StreamReader, MobileStreamWriter]:
    """Open a TCP connection that outlives its network; like `asyncio.open_connection`.

    Args:
        host: The server's name or address; a name is resolved by the proxy.
        port: The server's port, 1 to 65535.
        access: An access link or a path of a file with one; by default what $MSOCKS_ACCESS_FILE names.
        link: Carry it over this network interface if that can be used.
        ssl: A context, or True for the default one: TLS with the server, end to end.
        server_hostname: The name to verify; `host` by default.
        limit: Buffer limit of the reader in bytes.
        node: A `MobileNode` to use; by default one per event loop and access link, kept as long as it has connections.

    Raises:
        DestinationError: The proxy cannot or may not connect to the server.
        AuthenticationError: The proxy did not accept the access link, or is not the one that it names.
        ConfigurationError: The arguments cannot be used.
    """
    destination = Endpoint.of(host, port)
    if ssl is True:
        ssl = ssl_module.create_default_context()
    if server_hostname is not None and not ssl:
        raise ConfigurationError("server_hostname goes with ssl", remedy="pass ssl=True or a context")
    if node is None:
        node = await shared_node(resolve_access(access))
    reader, writer = MobileStreamWriter.of(node, destination, limit)
    transport, protocol = writer._mobile, cast(asyncio.StreamReaderProtocol, writer.transport.get_protocol())
    try:
        await node.connect(transport.connection, link=link)
    except BaseException:
        transport.abort()
        raise
    writer.begin()
    if ssl:
        try:
            await _wrap_tls(writer, protocol, ssl, server_hostname or host, None)
        except BaseException:
            transport.abort()
            raise
    return reader, writer
