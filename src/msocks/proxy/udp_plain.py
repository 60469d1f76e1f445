"""The UDP association of a plain SOCKS5 client (RFC 1928 section 7): lives as long as the client's TCP connection."""

from __future__ import annotations

import socket

from msocks.proxy.udp_host import UdpHost, UdpView
from msocks.proxy.udp_relay import UdpRelay
from msocks.transport.udp_client_port import UdpClientPort
from msocks.values.endpoint import Endpoint

_DISCARDED_BYTES = 4096


class PlainUdp:
    """See the module. `close` may be called at any time, and is by itself when the connection ends."""

    def __init__(self, host: UdpHost, user: str, connection: socket.socket, announced: Endpoint) -> None:
        """
        Args:
            host: Keeps it.
            user: Whose it is.
            connection: The client's; it stays its owner's until `take_over`.
            announced: DST.ADDR and DST.PORT of the request.

        Raises:
            OSError: The connection is gone, or there are no sockets to be had.
        """
        self.user = user
        self._host = host
        self._opened_at = host.reactor.loop.time()
        self._connection: socket.socket | None = None
        self._closed = False
        self._port = UdpClientPort(host.reactor, connection, announced, self._on_upward)
        try:
            self._relay = UdpRelay(host.reactor, host.destinations, self._on_downward)
        except OSError:
            self._port.close()
            raise

    @property
    def bound(self) -> Endpoint:
        """Where the client's datagrams are expected, as this host knows it."""
        return self._port.bound

    def take_over(self, connection: socket.socket) -> None:
        """Own the connection from now on, and end with it. What comes over it means nothing."""
        self._connection = connection
        self._host.reactor.watch(connection.fileno(), self._on_events)

    def view(self) -> UdpView:
        port, relay = self._port, self._relay
        return UdpView(
            user=self.user,
            mobile=False,
            client=port.client,
            port=relay.port,
            sent=relay.sent,
            received=relay.received,
            bytes_up=relay.bytes_up,
            bytes_down=relay.bytes_down,
            paths=1,
            opened_at=self._opened_at,
            dropped={
                "fragments": port.fragments,
                "foreign": port.foreign,
                "malformed": port.malformed,
                "to_client": port.not_sent,
                **relay.dropped(),
            },
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._port.close()
        self._relay.close()
        if self._connection is not None:
            self._host.reactor.unwatch(self._connection.fileno())
            self._connection.close()
        self._host.ended(self)

    def _on_upward(self, destination: Endpoint, payload: bytes) -> None:
        self._host.heard(self)
        self._relay.send(destination, payload)

    def _on_downward(self, source: Endpoint, payload: bytes) -> None:
        self._host.heard(self)
        self._port.send(source, payload)

    def _on_events(self, _events: int) -> None:
        connection = self._connection
        while connection is not None and not self._closed:
            try:
                data = connection.recv(_DISCARDED_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
