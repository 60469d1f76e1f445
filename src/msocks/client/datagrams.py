"""UDP over a mobile node: `msocks.open_datagrams`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Self

from msocks.client.access import Access, resolve_access
from msocks.client.events import Event, EventLog
from msocks.client.node import MobileNode
from msocks.client.shared_node import shared_node
from msocks.client.udp_connection import UdpConnection
from msocks.errors import EndReason, MsocksError, SessionEnded
from msocks.session.mobile_effects import Carried, SessionState
from msocks.values.endpoint import Endpoint

WAITING_DATAGRAMS = 1024
"""So many that nobody has received are kept; one more, and the oldest is dropped."""


class MobileDatagrams:
    """Datagrams to and from any servers, which see one address and port of the proxy, whatever link carries them.

    As with UDP anywhere, they may be lost or overtake each other. Made by `open_datagrams`; closed by `close`, or at
    the end of an ``async with``. Implements `msocks.client.network.DatagramListener`.
    """

    def __init__(self, node: MobileNode) -> None:
        self._connection = UdpConnection(node, self)
        self._events = EventLog()
        self._waiting: deque[tuple[Endpoint, bytes]] = deque()
        self._overflowed = 0
        self._error: MsocksError | None = None
        self._news = asyncio.Event()

    @property
    def session(self) -> str:
        """Names it on this host, 32 hexadecimal digits."""
        return self._connection.session.hex()

    @property
    def link(self) -> str | None:
        """The name of the network interface that carries the datagrams now, or is being tried."""
        return self._connection.link

    @property
    def connection(self) -> UdpConnection:
        """State, generation, moves."""
        return self._connection

    @property
    def dropped(self) -> int:
        """Datagrams that did not leave this host, or that were not received in time."""
        return self._connection.dropped + self._overflowed

    def send(self, payload: bytes, host: str, port: int) -> None:
        """Send a datagram to a server, 0 to some 65,400 bytes; a name is resolved by the proxy.

        While no link can carry it it is kept for a moment: 64 datagrams, 2 s.

        Raises:
            SessionEnded: It is closed, or the proxy has ended it.
            AddressError: `host` is no host, or `port` no port.
        """
        destination = Endpoint.of(host, port)
        self._check()
        self._connection.send(destination, payload)

    async def receive(self) -> tuple[bytes, tuple[str, int]]:
        """The next datagram and the address and port that it came from.

        Raises:
            SessionEnded: It is closed, or the proxy has ended it, and nothing waits any more.
        """
        while not self._waiting:
            self._check()
            self._news.clear()
            await self._news.wait()
        source, payload = self._waiting.popleft()
        return payload, (str(source.host), source.port)

    async def move(self, link: str) -> None:
        """Carry the datagrams over another link; return when they go there.

        Raises:
            LinkUnavailable: It cannot; they go on where they were.
            SessionEnded: It is over.
        """
        await self._connection.move(link)

    def events(self) -> AsyncIterator[Event]:
        """Moved, Parked, Resumed and Ended as they happen; ends with it."""
        return self._events.follow()

    def close(self) -> None:
        """Send and receive no more; the proxy is told."""
        if self._connection.state is not SessionState.ENDED:
            self._connection.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._connection.state is SessionState.ENDED:
            raise self._error or SessionEnded(EndReason.CLIENT_CLOSED)

    # -- DatagramListener -------------------------------------------------------------------------------------------

    def on_carried(self, carried: Carried) -> None:
        self._events.moved(carried)
        self._news.set()

    def on_parked(self) -> None:
        self._events.parked()

    def on_datagram(self, source: Endpoint, payload: bytes) -> None:
        self._waiting.append((source, payload))
        if len(self._waiting) > WAITING_DATAGRAMS:
            self._waiting.popleft()
            self._overflowed += 1
        self._news.set()

    def on_ended(self, error: MsocksError | None) -> None:
        self._error = error
        self._events.ended(error)
        self._news.set()

    async def stands(self) -> None:
        """Wait until the proxy has opened it; raises what has kept it from that."""
        while self._connection.state is SessionState.CONNECTING:
            self._news.clear()
            await self._news.wait()
        self._check()


async def open_datagrams(
    *, access: Access = None, link: str | None = None, node: MobileNode | None = None
) -> MobileDatagrams:
    """Open a way for datagrams that outlives its network, and wait until it stands.

    Args:
        access: An access link or a path of a file with one; by default what $MSOCKS_ACCESS_FILE names.
        link: Carry it over this network interface if that can be used.
        node: A `MobileNode` to use; by default one per event loop and access link.

    Raises:
        AuthenticationError: The proxy did not accept the access link, or is not the one that it names.
        ConfigurationError: There is no access link.
        SessionEnded: The proxy has as many as it, or the user, may have.
    """
    if node is None:
        node = await shared_node(resolve_access(access))
    datagrams = MobileDatagrams(node)
    try:
        node.begin(datagrams.connection, link=link)
        await datagrams.stands()
    except BaseException:
        datagrams.close()
        raise
    return datagrams
