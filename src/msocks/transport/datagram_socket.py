"""A UDP socket in the reactor: hands over what arrives, and sends without ever waiting."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from msocks.transport.reactor import READABLE, Reactor
from msocks.values.endpoint import Address

MOST_BYTES = 65536
"""More than any datagram has."""
_BATCH = 64
_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_DONT = 0

SockAddr = tuple[Any, ...]


def allow_fragments(sock: socket.socket) -> None:
    """Let datagrams over IPv4 be fragmented anywhere on the way (no *don't fragment*).

    By default Linux forbids it to routers, and a datagram that is too large for a link further on is lost, once for
    each time that the path's MTU is learnt. Over IPv6 it is the sender alone that fragments, by what it has learnt.
    """
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)


def open_datagram_socket(address: Address, *, scope: int = 0, both_families: bool = False) -> socket.socket:
    """A non-blocking UDP socket on any free port.

    Args:
        address: One of this host's, or unspecified.
        scope: The interface's number, where the address is link-local.
        both_families: Speak IPv4 as well, on ``::``.

    Raises:
        OSError: The address is not this host's, or there are no sockets to be had.
    """
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both_families)
        allow_fragments(sock)
        sock.bind((str(address), 0, 0, scope) if address.version == 6 else (str(address), 0))
    except OSError:
        sock.close()
        raise
    return sock


class DatagramSocket:
    """See the module. Owns the socket from the beginning.

    Attributes:
        too_large: How many datagrams were not sent because no UDP datagram, or none on that interface, is so long.
        not_sent: How many were not sent for another reason: no route, no room in the socket's buffer, a packet filter.
    """

    __slots__ = ("_on_datagram", "_on_failure", "_reactor", "not_sent", "sock", "too_large")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        on_datagram: Callable[[bytes, SockAddr], None],
        on_failure: Callable[[OSError], None] | None = None,
    ) -> None:
        """
        Args:
            reactor: Watches the socket.
            sock: Non-blocking; bound or connected.
            on_datagram: Called with each datagram and the socket address that it came from. It may close this object.
            on_failure: Called when receiving tells of an error: of a connected socket, an ICMP error for what it sent.
        """
        self.sock = sock
        self.too_large = 0
        self.not_sent = 0
        self._reactor = reactor
        self._on_datagram = on_datagram
        self._on_failure = on_failure
        reactor.watch(sock.fileno(), self._on_events)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self.sock.fileno() < 0

    def send(self, datagram: bytes, to: SockAddr | None = None) -> bool:
        """Send to `to`, or where the socket is connected to; False where it could not be sent, and was counted."""
        try:
            if to is None:
                self.sock.send(datagram)
            else:
                self.sock.sendto(datagram, to)
        except BlockingIOError:
            self.not_sent += 1  # as the network would drop what comes too fast for it
            return False
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self.too_large += 1
            else:
                self.not_sent += 1
                if self._on_failure is not None:
                    self._on_failure(error)
            return False
        return True

    def close(self) -> None:
        """Send and receive nothing more."""
        if not self.is_closed:
            self._reactor.unwatch(self.sock.fileno())
            self.sock.close()

    def _on_events(self, events: int) -> None:
        if events & READABLE:
            self._receive()

    def _receive(self) -> None:
        for _ in range(_BATCH):
            if self.is_closed:
                return
            try:
                datagram, source = self.sock.recvfrom(MOST_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if self._on_failure is not None:
                    self._on_failure(error)
                continue
            self._on_datagram(datagram, source)
        self._reactor.call_soon(self._receive)
