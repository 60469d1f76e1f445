"""The proxy's ports: TCP listeners that accept in batches, and the UDP sockets for probes and UDP flows beside them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import structlog

from msocks.errors import AddressError, ConfigurationError, MsocksError
from msocks.transport.arrival_stamp import stamp_arrivals
from msocks.transport.datagram_socket import allow_fragments
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint

_log = structlog.get_logger("msocks.proxy.listener")

_BACKLOG = 4096  # the kernel takes at most net.core.somaxconn
_BATCH = 64
# Out of descriptors: nothing tells when there are some again.
_RETRY_ACCEPT_S = 0.1
_PORT_ATTEMPTS = 16

IP_PKTINFO = 8
_IPV6_RECVPKTINFO = 49

# Accepted sockets inherit these. Clients that vanished without a word are found after some minutes.
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 8),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class ListenError(MsocksError, OSError):
    """The proxy cannot listen where it was told to."""


class _ListeningSocket(socket.socket):
    """`accept` asks it for its family and type each time, and is told them here without a detour."""

    family = socket.AF_UNSPEC
    type = socket.SOCK_STREAM

    def __init__(self, family: socket.AddressFamily, kind: int) -> None:
        super().__init__(family, kind)
        self.family = family


class Listener:
    """One TCP port and the UDP port of the same number.

    Attributes:
        endpoint: Where it listens, a free port resolved.
        tcp: Bound; listens from `begin` on.
        udp: The socket for probes and UDP flows, non-blocking, which tells the local address of each datagram.
    """

    def __init__(self, endpoint: Endpoint, *, both_families: bool) -> None:
        """
        Args:
            endpoint: Where to listen; port 0 for a free one.
            both_families: Whether an IPv6 wildcard takes IPv4 connections too.

        Raises:
            ListenError: The address is not this host's, or the port is taken or not allowed.
        """
        for attempt in range(_PORT_ATTEMPTS):
            self.tcp = _bind(endpoint, socket.SOCK_STREAM, both_families)
            self.endpoint = Endpoint.from_sockaddr(self.tcp.getsockname())
            try:
                self.udp = _bind(self.endpoint, socket.SOCK_DGRAM, both_families)
            except ListenError:
                self.tcp.close()
                # A port that is free for TCP may be taken for UDP.
                if endpoint.port or attempt == _PORT_ATTEMPTS - 1:
                    raise
                continue
            break
        self._reactor: Reactor | None = None

    def begin(self, reactor: Reactor, on_accepted: Callable[[socket.socket, tuple[Any, ...]], None]) -> None:
        """Accept: `on_accepted` gets each connection as a non-blocking socket, with the peer's address."""
        self.tcp.listen(_BACKLOG)
        self._reactor = reactor
        self._on_accepted = on_accepted
        self._refusing = False
        reactor.watch(self.tcp.fileno(), self._on_events)

    def stop(self) -> None:
        """Accept nothing more; the UDP socket goes on."""
        if self._reactor is not None:
            self._reactor.unwatch(self.tcp.fileno())
            self._reactor = None
        self.tcp.close()

    def close(self) -> None:
        """Close both."""
        self.stop()
        self.udp.close()

    def _on_events(self, _events: int) -> None:
        self._accept()

    def _accept(self) -> None:
        reactor = self._reactor
        if reactor is None:
            return
        for _ in range(_BATCH):
            try:
                sock, sockaddr = self.tcp.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(reactor, error)
                    return
                continue  # that connection was gone before it was accepted
            self._refusing = False
            sock.setblocking(False)
            self._on_accepted(sock, sockaddr)
        reactor.call_soon(self._accept)

    def _pause(self, reactor: Reactor, error: OSError) -> None:
        if not self._refusing:
            self._refusing = True
            _log.error(
                "accept_failed",
                reason=error.strerror,
                remedy="raise the limit of open files (LimitNOFILE= of the unit)",
            )
        reactor.loop.call_later(_RETRY_ACCEPT_S, self._accept)


def open_listeners(endpoints: Sequence[Endpoint]) -> list[Listener]:
    """Listeners on all endpoints; names are resolved to all their addresses.

    Raises:
        ListenError: One of them cannot be had; none is open then.
        ConfigurationError: A name does not resolve.
    """
    wanted = [address for endpoint in endpoints for address in _resolved(endpoint)]
    ipv4_wildcards = {each.port for each in wanted if each.address == IPv4Address(0)}
    listeners: list[Listener] = []
    try:
        for endpoint in dict.fromkeys(wanted):
            listeners.append(Listener(endpoint, both_families=endpoint.port not in ipv4_wildcards))  # noqa: PERF401
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _resolved(endpoint: Endpoint) -> list[Endpoint]:
    if endpoint.address is not None:
        return [endpoint]
    try:
        found = socket.getaddrinfo(str(endpoint.host), endpoint.port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
        return [Endpoint.from_sockaddr(sockaddr) for *_, sockaddr in found]
    except (OSError, AddressError) as error:
        raise ConfigurationError(
            f"the name {endpoint.host} to listen on does not resolve: {error}",
            remedy="give an address of this host, 0.0.0.0 or [::]",
        ) from None


def _bind(endpoint: Endpoint, kind: socket.SocketKind, both_families: bool) -> socket.socket:
    ipv6 = isinstance(endpoint.address, IPv6Address)
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    sock: socket.socket
    if kind is socket.SOCK_STREAM:
        sock = _ListeningSocket(family, kind | socket.SOCK_NONBLOCK)
    else:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if ipv6:
            dual = both_families and endpoint.address == IPv6Address(0)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for level, option, value in _OPTIONS:
                sock.setsockopt(level, option, value)
        else:
            allow_fragments(sock)
            stamp_arrivals(sock)
            if ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.bind((str(endpoint.host), endpoint.port))
    except OSError as error:
        sock.close()
        match error.errno:
            case errno.EADDRINUSE:
                remedy = "another program uses the port; choose another one"
            case errno.EADDRNOTAVAIL:
                remedy = "give an address of this host, 0.0.0.0 or [::]"
            case errno.EACCES:
                remedy = "use a port above 1023"
            case _:
                remedy = ""
        name = "TCP" if kind is socket.SOCK_STREAM else "UDP"
        raise ListenError(f"cannot listen on {endpoint} ({name}): {error.strerror}", remedy=remedy) from None
    return sock
