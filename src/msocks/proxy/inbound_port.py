"""A port of the proxy at which peers connect to one of its clients: a listening socket for each IP version."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import structlog

from msocks.transport.acceptor import Acceptor
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint

_log = structlog.get_logger("msocks.proxy.inbound")

_BACKLOG = 128
_PORT_ATTEMPTS = 16
_WILDCARDS = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))
_NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class InboundPort:
    """See the module. Listens on all addresses of this host.

    Attributes:
        port: Its number.
    """

    def __init__(self, reactor: Reactor, port: int, on_accepted: Callable[[socket.socket, Endpoint], None]) -> None:
        """Listen; `on_accepted` gets each connection as a non-blocking socket, with the peer's address.

        Port 0 takes a free one. Raises OSError.
        """
        self._on_accepted = on_accepted
        self._acceptor = Acceptor(reactor, self._accepted, _cannot_accept)
        listening: list[socket.socket] = []
        for attempt in range(_PORT_ATTEMPTS):
            try:
                listening = _listen(port)
            except OSError as error:
                # A port that is free in one IP version may be taken in the other.
                if port or error.errno != errno.EADDRINUSE or attempt == _PORT_ATTEMPTS - 1:
                    raise
                continue
            break
        self.port: int = listening[0].getsockname()[1]
        self._acceptor.add(listening)

    def close(self) -> None:
        """Accept nothing more; may be called by who is given a connection."""
        self._acceptor.close()

    def _accepted(self, sock: socket.socket, sockaddr: tuple[Any, ...]) -> None:
        self._on_accepted(sock, Endpoint.from_sockaddr(sockaddr))


def _cannot_accept(error: OSError) -> None:
    _log.error("accept_failed", reason=error.strerror, remedy="raise the limit of open files")


def address_toward(peer: Address) -> Address | None:
    """This host's own address on the way to `peer`; None where there is no way."""
    ipv6 = isinstance(peer, IPv6Address)
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(peer), 9))  # sends nothing
            return Endpoint.from_sockaddr(sock.getsockname()).address
        except OSError:
            return None


def is_anybody(peer: Endpoint) -> bool:
    """Whether the peer of a BIND is left open."""
    return peer.host in (IPv4Address(0), IPv6Address(0))


def _listen(port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    try:
        for family, wildcard in _WILDCARDS:
            try:
                listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                failure = error
                continue
            sockets.append(listening)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((wildcard, port))
            except OSError as error:
                if error.errno not in _NO_FAMILY:
                    raise
                failure = error
                sockets.pop().close()  # this host has no address of that version
                continue
            port = listening.getsockname()[1]
            listening.listen(_BACKLOG)
    except BaseException:
        for opened in sockets:
            opened.close()
        raise
    if not sockets:
        raise failure or OSError(errno.EADDRNOTAVAIL, "there is no address to listen on")
    return sockets
