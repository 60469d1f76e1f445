"""The servers' side of a UDP association: one socket toward all of them, and the rules about where it may send."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from msocks.transport.datagram_socket import DatagramSocket, SockAddr, open_datagram_socket
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint

PEERS = 1024
"""So many addresses of servers are remembered, the last ones, to let in what they send."""
_WAITING_NAMES = 8
_WAITING_DATAGRAMS = 16
_ANY_IPV4, _ANY_IPV6 = IPv4Address(0), IPv6Address(0)


class Destinations(Protocol):
    """Says where datagrams may go."""

    def refusal(self, address: Address, port: int) -> str | None:
        """Why nothing is sent there; None where it is."""

    def lookup(self, name: str, on_found: Callable[[list[Address]], None]) -> None:
        """Look a name up; `on_found` gets its addresses, none where there are none, now or later."""


class UdpRelay:
    """See the module.

    Filtering is that of a NAT with *address-dependent filtering* (RFC 4787 section 5): a host to which the client has
    sent may answer, from any port (TFTP does), and nobody else.

    Attributes:
        sent: Datagrams to servers.
        received: Datagrams from servers, given to the client.
        bytes_up: Their payload.
        bytes_down: Their payload.
        denied: Datagrams that the rules do not allow, or for port 0.
        unresolved: For a name without address, or while too many are being looked up.
        unasked: From hosts to which the client has not sent.
    """

    def __init__(
        self, reactor: Reactor, destinations: Destinations, on_datagram: Callable[[Endpoint, bytes], None]
    ) -> None:
        """
        Args:
            reactor: Watches the socket.
            destinations: The rules, and the resolver.
            on_datagram: Called with source and payload of what servers send.

        Raises:
            OSError: There are no sockets to be had.
        """
        self.sent = self.received = self.bytes_up = self.bytes_down = 0
        self.denied = self.unresolved = self.unasked = 0
        self._destinations = destinations
        self._on_datagram = on_datagram
        self._peers: dict[Address, None] = {}  # the one that was sent to last is the last
        self._waiting: dict[str, list[tuple[int, bytes]]] = {}
        try:
            sock, self._mapped = open_datagram_socket(_ANY_IPV6, both_families=True), True
        except OSError:  # a host without IPv6
            sock, self._mapped = open_datagram_socket(_ANY_IPV4), False
        self._socket = DatagramSocket(reactor, sock, self._receive)

    @property
    def port(self) -> int:
        """The port that servers see."""
        return int(self._socket.sock.getsockname()[1])

    def send(self, destination: Endpoint, payload: bytes) -> None:
        """Send a datagram, if the rules allow it; a name is looked up first."""
        if destination.address is not None:
            self._send([destination.address], destination.port, payload)
            return
        name = str(destination.host).lower()
        waiting = self._waiting.get(name)
        if waiting is not None:
            if len(waiting) < _WAITING_DATAGRAMS:
                waiting.append((destination.port, payload))
            else:
                self.unresolved += 1
        elif len(self._waiting) >= _WAITING_NAMES:
            self.unresolved += 1
        else:
            self._waiting[name] = [(destination.port, payload)]
            self._destinations.lookup(name, lambda addresses: self._found(name, addresses))

    def dropped(self) -> dict[str, int]:
        """Datagrams that went no further, by cause."""
        return {
            "denied": self.denied,
            "unresolved": self.unresolved,
            "unasked": self.unasked,
            "too_large": self._socket.too_large,
            "not_sent": self._socket.not_sent,
        }

    def close(self) -> None:
        """Send and receive nothing more."""
        self._socket.close()
        self._waiting.clear()

    def _found(self, name: str, addresses: list[Address]) -> None:
        waiting = self._waiting.pop(name, [])
        if self._socket.is_closed:
            return
        for port, payload in waiting:
            if addresses:
                self._send(addresses, port, payload)
            else:
                self.unresolved += 1

    def _send(self, addresses: list[Address], port: int, payload: bytes) -> None:
        """Send to the first address that is allowed and of a family that this host has."""
        allowed = [each for each in map(_plain, addresses) if self._destinations.refusal(each, port) is None]
        if not allowed:
            self.denied += 1
            return
        address = next((each for each in allowed if self._mapped or each.version == 4), allowed[0])
        host = f"::ffff:{address}" if self._mapped and address.version == 4 else str(address)
        self._peers.pop(address, None)
        self._peers[address] = None
        if len(self._peers) > PEERS:
            del self._peers[next(iter(self._peers))]
        if self._socket.send(payload, (host, port)):
            self.sent += 1
            self.bytes_up += len(payload)

    def _receive(self, payload: bytes, sockaddr: SockAddr) -> None:
        source = Endpoint.from_sockaddr(sockaddr)
        if source.address not in self._peers:
            self.unasked += 1
            return
        self.received += 1
        self.bytes_down += len(payload)
        self._on_datagram(source, payload)


def _plain(address: Address) -> Address:
    """An IPv4-mapped address is another spelling of an IPv4 address."""
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
