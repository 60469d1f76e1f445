"""Where one SOCKS5 client sends its datagrams (RFC 1928 section 7): the client's side of a UDP relay."""

from __future__ import annotations

import socket
from collections.abc import Callable

from msocks.errors import ProtocolError
from msocks.protocol.socks5_udp import ClientGate, decode_udp, encode_udp
from msocks.transport.datagram_socket import DatagramSocket, SockAddr, open_datagram_socket
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint


class UdpClientPort:
    """A UDP port on the address at which the client has reached this host by TCP, whatever it was bound to.

    Fragments (FRAG not 0) are dropped, as RFC 1928 allows. So is what is not the client's (see `ClientGate`), and what
    is malformed.

    Attributes:
        bound: The port, as this host knows it.
        fragments: How many were dropped for being fragments.
        foreign: For not coming from the client.
        malformed: For their header.
    """

    def __init__(
        self,
        reactor: Reactor,
        connection: socket.socket,
        announced: Endpoint,
        on_datagram: Callable[[Endpoint, bytes], None],
    ) -> None:
        """
        Args:
            reactor: Watches the port.
            connection: The client's TCP connection.
            announced: DST.ADDR and DST.PORT of its UDP ASSOCIATE.
            on_datagram: Called with destination and payload of each datagram of the client.

        Raises:
            OSError: The connection is gone, or there are no sockets to be had.
        """
        local, peer = connection.getsockname(), connection.getpeername()
        host, client = Endpoint.from_sockaddr(local).address, Endpoint.from_sockaddr(peer).address
        assert host is not None and client is not None  # noqa: PT018 - a socket's address is no name
        self.fragments = self.foreign = self.malformed = 0
        self._on_datagram = on_datagram
        self._gate = ClientGate(client, announced)
        # A link-local address means nothing without its interface.
        scope = local[3] if host.version == 6 else 0
        self._scope: SockAddr = (0, scope) if host.version == 6 else ()
        self._port = DatagramSocket(reactor, open_datagram_socket(host, scope=scope), self._receive)
        self.bound = Endpoint.from_sockaddr(self._port.sock.getsockname())

    @property
    def client(self) -> Endpoint | None:
        """Where the client's datagrams come from; None as long as that is not known."""
        return self._gate.client

    @property
    def not_sent(self) -> int:
        """How many datagrams for the client could not be sent, or came before it had sent one."""
        return self._port.not_sent + self._port.too_large

    def send(self, source: Endpoint, payload: bytes) -> None:
        """Give the client a datagram that came from `source`."""
        client = self._gate.client
        if client is None:
            self._port.not_sent += 1
        else:
            self._port.send(encode_udp(source, payload), (str(client.host), client.port, *self._scope))

    def close(self) -> None:
        """Take nothing more."""
        self._port.close()

    def _receive(self, datagram: bytes, source: SockAddr) -> None:
        if not self._gate.admits(Endpoint.from_sockaddr(source)):
            self.foreign += 1
            return
        try:
            received = decode_udp(datagram)
        except ProtocolError:
            self.malformed += 1
            return
        if received.fragment:
            self.fragments += 1
            return
        self._on_datagram(received.endpoint, received.payload)
