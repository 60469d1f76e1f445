"""Opening a connection to the proxy *through a link*: both directions of it use that interface and no other.

The socket is bound to the device (SO_BINDTODEVICE, open to everybody since Linux 5.7) and to the link's source address.
The proxy's addresses race as in Happy Eyeballs version 2 (RFC 8305), beginning with what worked last on that link, but
with a stagger fit for a path whose round-trip time is known. A lost SYN is a second of silence in Linux: so, where all
addresses are under way and none has answered, the race goes on with another connection to the first of them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Sequence
from itertools import zip_longest

from msocks.errors import LinkUnavailable
from msocks.transport.kernel import prepare_leg
from msocks.transport.proxy_addresses import ProxyAddresses
from msocks.transport.reactor import FAILED, WRITABLE, Reactor
from msocks.values.endpoint import Address, Endpoint
from msocks.values.link import Family, Link, LinkState

LEAST_STAGGER_S = 0.05
UNKNOWN_STAGGER_S = 0.25
"""RFC 8305 section 5 recommends this where nothing is known of the path."""
MOST_STAGGER_S = 1.0
MOST_ADDRESSES = 4
MOST_REPETITIONS = 2

KEEP_ALIVE_IDLE_S = 110
"""Below the 2 minutes after which the hastiest of the common NATs forget an idle TCP connection. (RFC 5382 asks for 2 h
4 min; mobile carriers and home routers in the field are between 2 and 30 min.)"""
KEEP_ALIVE_INTERVAL_S = 15
KEEP_ALIVE_PROBES = 4

_IP_BIND_ADDRESS_NO_PORT = 24
_LINK_ERRORS = frozenset(
    {errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM}
)


def bound_socket(link: Link, family: Family, kind: socket.SocketKind) -> socket.socket:
    """A non-blocking socket that sends and receives through `link` only, from the link's source address.

    Args:
        link: The link, which must have an address of `family`.
        family: IP version.
        kind: socket.SOCK_STREAM or SOCK_DGRAM.

    Raises:
        OSError: The interface or the address is gone, or the kernel lets nobody but root bind to a device (EPERM,
            before Linux 5.7).
    """
    source = link.source(family)
    if source is None:
        raise OSError(errno.EADDRNOTAVAIL, f"{link.name} has no IPv{family} address")
    domain = socket.AF_INET6 if family is Family.V6 else socket.AF_INET
    sock = socket.socket(domain, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.name.encode())
        # The port is chosen by connect(), so that one port serves several connections to different addresses.
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((str(source), 0))
    except OSError:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Keep an idle connection's NAT mappings, and notice within 3 minutes that its peer is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_ALIVE_PROBES)


class Dialer:
    """Connects to one proxy over any link. Remembers which address worked on which link."""

    def __init__(self, reactor: Reactor, endpoints: Sequence[Endpoint]) -> None:
        """
        Args:
            reactor: Watches the sockets while they connect.
            endpoints: The access link's addresses, in order of preference; names are looked up.
        """
        self._reactor = reactor
        self._worked: dict[str, Endpoint] = {}
        self._took_s: dict[str, float] = {}
        self.addresses = ProxyAddresses(reactor.loop, endpoints)

    def candidates(self, link: Link) -> list[Endpoint]:
        """The proxy's addresses that can be tried over `link`: first what worked there, then families in turn."""
        known = [
            endpoint
            for endpoint in self.addresses.known
            if endpoint.address is not None and link.reaches(Family.of(endpoint.address))
        ]
        worked = self._worked.get(link.name)
        if worked in known:
            known.sort(key=lambda endpoint: (endpoint != worked, _version(endpoint) != _version(worked)))
        return _families_in_turn(known)

    def resolve_soon(self) -> None:
        """Look the proxy's names up in the background; what is known stays in use meanwhile."""
        self.addresses.resolve_soon()

    async def dial(
        self, link: Link, *, timeout_s: float, first: bytes = b"", rtt_ms: float | None = None
    ) -> socket.socket:
        """Connect to the proxy over `link`.

        Args:
            link: The link as it is now.
            timeout_s: For the lookup, where one is needed, and the connection together.
            first: Sent in the moment the connection stands; at most 16 KiB.
            rtt_ms: The link's round-trip time where it is known: sets the pace of the race (else the last dial does).

        Returns:
            A non-blocking socket with the options of a leg, not watched by the reactor any more.

        Raises:
            LinkUnavailable: The link is down, or its interface, address or route is gone.
            TimeoutError: Nothing answered in time.
            OSError: The last address that was tried refused; a note tells of each of the others.
        """
        rtt_s = self._took_s.get(link.name) if rtt_ms is None else rtt_ms / 1000
        stagger_s = UNKNOWN_STAGGER_S if rtt_s is None else min(max(LEAST_STAGGER_S, 2 * rtt_s), MOST_STAGGER_S)
        try:
            async with asyncio.timeout(timeout_s):
                if link.state is not LinkState.DOWN and not self.addresses.known:
                    await self._look_up(link)
                race = _Race(self._reactor, link, self._order(link), stagger_s, first)
                try:
                    sock, endpoint, took_s = await race.run()
                finally:
                    race.close()
        except TimeoutError:
            raise TimeoutError(
                errno.ETIMEDOUT, f"the proxy did not answer over {link.name} in {timeout_s:g} s"
            ) from None
        self._worked[link.name] = endpoint
        self._took_s[link.name] = took_s
        return sock

    def open_udp(self, link: Link, turn: int) -> socket.socket:
        """A UDP socket through `link` that is connected to one of the proxy's addresses, another one each `turn`.

        Raises:
            LinkUnavailable: None of them can be tried over the link, or none is known.
            OSError: The interface, its address or its route is gone.
        """
        candidates = self.candidates(link)
        if not candidates:
            raise LinkUnavailable(link.name, "it has no address and route for any address of the proxy")
        endpoint = candidates[turn % len(candidates)]
        assert endpoint.address is not None
        sock = bound_socket(link, Family.of(endpoint.address), socket.SOCK_DGRAM)
        try:
            sock.connect((str(endpoint.host), endpoint.port))
        except OSError:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Give up a lookup that is under way."""
        self.addresses.close()

    async def _look_up(self, link: Link) -> None:
        try:
            await self.addresses.wait_known()
        except OSError as error:
            raise LinkUnavailable(link.name, f"the proxy's name does not resolve: {error.strerror}") from error

    def _order(self, link: Link) -> list[Endpoint]:
        order = self.candidates(link)[:MOST_ADDRESSES]
        if not order:
            if link.state is LinkState.DOWN:
                raise LinkUnavailable(link.name, "it is down")
            families = " or ".join(sorted({f"IPv{_version(endpoint)}" for endpoint in self.addresses.known}))
            raise LinkUnavailable(link.name, f"it has no address and route for {families}, where the proxy is")
        return order + order[:1] * MOST_REPETITIONS


def _version(endpoint: Endpoint) -> int:
    address: Address | None = endpoint.address
    return 0 if address is None else address.version


def _families_in_turn(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """RFC 8305 section 4: the family of the first, then the other, and so on."""
    if not endpoints:
        return []
    first = _version(endpoints[0])
    same = [endpoint for endpoint in endpoints if _version(endpoint) == first]
    other = [endpoint for endpoint in endpoints if _version(endpoint) != first]
    return [endpoint for pair in zip_longest(same, other) for endpoint in pair if endpoint is not None]


class _Race:
    """Connections to several addresses, of which the first that stands wins. Close it whatever happens."""

    def __init__(self, reactor: Reactor, link: Link, order: list[Endpoint], stagger_s: float, first: bytes) -> None:
        self._reactor = reactor
        self._link = link
        self._waiting = order[::-1]
        self._started: set[Endpoint] = set()
        self._stagger_s = stagger_s
        self._first = first
        self._sockets: dict[socket.socket, tuple[Endpoint, float]] = {}
        self._errors: list[tuple[Endpoint, OSError]] = []
        self._winner: tuple[socket.socket, Endpoint, float] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] = reactor.loop.create_future()

    async def run(self) -> tuple[socket.socket, Endpoint, float]:
        """The winner, where it leads, and how many seconds its handshake took."""
        self._start_next()
        await self._over
        assert self._winner is not None
        winner, self._winner = self._winner, None
        return winner

    def close(self) -> None:
        self._cancel_timer()
        self._waiting.clear()
        for sock in self._sockets:
            self._reactor.unwatch(sock.fileno())
            sock.close()
        self._sockets.clear()
        if self._winner is not None:
            self._winner[0].close()
        if self._over.done() and not self._over.cancelled():
            self._over.exception()  # nobody may be left to ask

    def _start_next(self) -> None:
        """Begin with the next address; those that fail at once are passed over."""
        self._cancel_timer()
        while self._waiting and not self._over.done():
            endpoint = self._waiting.pop()
            if any(endpoint == failed for failed, _ in self._errors):
                continue  # it has answered: no
            try:
                connected = self._connect(endpoint)
            except OSError as error:
                self._errors.append((endpoint, error))
                continue
            if not connected and self._waiting:
                if endpoint in self._started:
                    self._stagger_s *= 2
                self._started.add(endpoint)
                self._timer = self._reactor.loop.call_later(self._stagger_s, self._start_next)
            return
        self._check_lost()

    def _connect(self, endpoint: Endpoint) -> bool:
        assert endpoint.address is not None
        sock = bound_socket(self._link, Family.of(endpoint.address), socket.SOCK_STREAM)
        try:
            prepare_leg(sock)
            keep_alive(sock)
            number = sock.connect_ex((str(endpoint.host), endpoint.port))
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
        except OSError:
            sock.close()
            raise
        self._sockets[sock] = (endpoint, time.monotonic())
        if number == 0:
            self._connected(sock)
            return True
        self._reactor.watch(sock.fileno(), lambda events: self._on_events(sock, events))
        return False

    def _on_events(self, sock: socket.socket, events: int) -> None:
        if not events & (WRITABLE | FAILED):
            return
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._failed(sock, OSError(number, os.strerror(number)))
        else:
            self._connected(sock)

    def _connected(self, sock: socket.socket) -> None:
        try:
            if self._first and sock.send(self._first) != len(self._first):
                raise OSError(errno.EMSGSIZE, "the first bytes do not fit into the socket's buffer")
        except OSError as error:
            self._failed(sock, error)
            return
        self._reactor.unwatch(sock.fileno())
        self._cancel_timer()
        endpoint, began_at = self._sockets.pop(sock)
        self._winner = (sock, endpoint, time.monotonic() - began_at)
        if self._over.done():
            return  # cancelled in this turn: close() is about to come
        self._over.set_result(None)

    def _failed(self, sock: socket.socket, error: OSError) -> None:
        self._reactor.unwatch(sock.fileno())
        self._errors.append((self._sockets.pop(sock)[0], error))
        sock.close()
        self._start_next()

    def _check_lost(self) -> None:
        if self._sockets or self._waiting or self._over.done():
            return
        _, error = self._errors[-1]
        if all(each.errno in _LINK_ERRORS for _, each in self._errors):
            unavailable = LinkUnavailable(self._link.name, error.strerror or str(error))
            unavailable.__cause__ = error
            self._over.set_exception(unavailable)
            return
        for endpoint, earlier in self._errors[:-1]:
            error.add_note(f"{endpoint}: {earlier.strerror}")
        self._over.set_exception(error)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
