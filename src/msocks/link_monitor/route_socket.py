"""One NETLINK_ROUTE conversation with the kernel: subscribe to changes, ask for all there is.

The socket is an ordinary non-blocking one, so any loop can watch it. What comes out are the few facts that make a link
(rtnetlink(7)), and no more than those is decoded: sessions wait for the news, and the agent for its first look.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from msocks.values.endpoint import Address

ARPHRD_ETHER = 1

_GROUPS = (1, 5, 7, 9, 11)  # RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_RECEIVE_BUFFER_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_DUMP_TIMEOUT_S = 5.0
_DUMP_ATTEMPTS = 5

_NLMSG_HEADER = struct.Struct("=IHHII")
_INTERFACE = struct.Struct("=BxHiI4x")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BxBBI")  # struct ifaddrmsg
_ROUTE = struct.Struct("=BB2xBxxB4x")  # struct rtmsg
_NEXT_HOP = struct.Struct("=HxxI")  # struct rtnexthop
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
_NLA_TYPE_MASK = 0x3FFF
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 6, 9
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_MULTI, _NLM_F_DUMP = 0x1, 0x2, 0x300
_NLM_F_DUMP_INTR = 0x10
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR, _RTM_NEWROUTE, _RTM_GETROUTE = 16, 18, 20, 22, 24, 26

_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING, _IFF_LOWER_UP = 0x1, 0x8, 0x40, 0x10000
_IFA_F_TEMPORARY, _IFA_F_OPTIMISTIC, _IFA_F_DADFAILED = 0x01, 0x04, 0x08
_IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x20, 0x40
_SCOPE_UNIVERSE, _SCOPE_SITE = 0, 200
_TABLE_LOCAL = 255
_FAMILIES: dict[int, bytes] = {socket.AF_INET: bytes(4), socket.AF_INET6: bytes(16)}
"""The families that are read, and what stands for a destination that is left out: any."""
_TYPE_UNICAST = 1


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface as it is now.

    Attributes:
        index: Its index.
        name: Its name.
        is_up: Whether somebody set it up.
        is_running: Whether it is up, has carrier, and is past authentication (802.1X, WPA): RFC 2863 "up" or "unknown".
        is_loopback: Whether it leads nowhere else.
        mtu: In bytes; None where the event did not tell.
        hardware: Its kind of link layer, ARPHRD_* of linux/if_arp.h.
    """

    index: int
    name: str
    is_up: bool
    is_running: bool
    is_loopback: bool
    mtu: int | None
    hardware: int = ARPHRD_ETHER


@dataclass(frozen=True, slots=True)
class InterfaceGone:
    """An interface does not exist any more."""

    index: int


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface that can be the source of a connection beyond the local network.

    Attributes:
        index: Of the interface.
        address: The address.
        is_usable: False while duplicate address detection runs, and after it has failed (RFC 4862).
        is_deprecated: It should begin no new connections (RFC 4862 section 5.5.4).
        is_temporary: It is an IPv6 privacy address (RFC 8981).
    """

    index: int
    address: Address
    is_usable: bool
    is_deprecated: bool
    is_temporary: bool


@dataclass(frozen=True, slots=True)
class AddressGone:
    """An interface has lost an address."""

    index: int
    address: Address


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """Some route came or went. Which ones there are now must be asked.

    The kernel removes IPv4 routes without a word when an interface is set down or loses its last address, and replaces
    them without saying what was there before: a table kept from events alone would be wrong.
    """


@dataclass(frozen=True, slots=True)
class Route:
    """A way out over an interface.

    Attributes:
        index: Of the interface.
        destination: Prefix length 0 is the default route.
        metric: Lower is preferred by the kernel; 0 where none is set.
    """

    index: int
    destination: IPv4Network | IPv6Network
    metric: int


Fact: TypeAlias = Interface | InterfaceGone | InterfaceAddress | AddressGone | RoutesChanged


class Overrun(Exception):
    """Events were lost: ask for everything anew."""


class RouteSocket:
    """See the module. The constructor subscribes; events queue up in the kernel from then on.

    Raises:
        OSError: There is no NETLINK_ROUTE here.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._events.setblocking(False)
            self._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            self._events.bind((0, sum(1 << (group - 1) for group in _GROUPS)))
        except OSError:
            self._events.close()
            raise

    def fileno(self) -> int:
        """The descriptor that becomes readable when something has changed."""
        return self._events.fileno()

    def close(self) -> None:
        """Unsubscribe."""
        self._events.close()

    def read_events(self) -> Iterator[Fact]:
        """What has changed since the last call, oldest first; never blocks.

        Raises (at the step where events are missing):
            Overrun: The kernel had to drop events. What was queued before is discarded: without what followed it, it
                would overwrite with the past what is read anew.
        """
        while (data := self._receive()) is not None:
            for kind, _flags, message in _split(data):
                yield from self._facts(kind, message)

    def interfaces(self) -> list[Interface]:
        """All interfaces of this network namespace."""
        return [fact for fact in self._dump_facts(_RTM_GETLINK) if isinstance(fact, Interface)]

    def addresses(self) -> list[InterfaceAddress]:
        """All addresses of global scope."""
        return [fact for fact in self._dump_facts(_RTM_GETADDR) if isinstance(fact, InterfaceAddress)]

    def routes(self) -> list[Route]:
        """All unicast routes, of whatever table, that lead out of an interface."""
        return [
            route for kind, message in self._dump(_RTM_GETROUTE) if kind == _RTM_NEWROUTE for route in _routes(message)
        ]

    def interface(self, name: str) -> Interface | None:
        """One interface as it is at this moment; None where there is none of that name."""
        attribute = os.fsencode(name) + b"\0"
        attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(attribute), _IFLA_IFNAME) + attribute
        body = bytes(_INTERFACE.size) + attribute
        header = _NLMSG_HEADER.pack(_NLMSG_HEADER.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST, 1, 0)
        for kind, message in self._ask(header + body):
            if kind == _RTM_NEWLINK:
                return _interface(message)
        return None

    # -- inside -----------------------------------------------------------------------------------------------------

    def _receive(self) -> bytes | None:
        overrun = False
        while True:
            try:
                length = self._events.recv_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                overrun = True
                continue
            if not overrun:
                return bytes(self._buffer[:length])
        if overrun:
            raise Overrun
        return None

    def _dump_facts(self, request: int) -> Iterator[Fact]:
        for kind, message in self._dump(request):
            yield from self._facts(kind, message)

    def _dump(self, request: int) -> list[tuple[int, bytes]]:
        any_family = bytes(4)
        header = _NLMSG_HEADER.pack(_NLMSG_HEADER.size + 4, request, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        for _ in range(_DUMP_ATTEMPTS):
            try:
                return self._ask(header + any_family)
            except InterruptedError:
                continue  # the list changed while it was read
        raise OSError(errno.EAGAIN, "the network configuration changes faster than it can be read")

    def _ask(self, request: bytes) -> list[tuple[int, bytes]]:
        """Send a request and collect the answer. The kernel answers within the call: this waits for nobody.

        Raises:
            InterruptedError: The list changed while the kernel wrote it.
        """
        answer: list[tuple[int, bytes]] = []
        interrupted = False
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
            sock.settimeout(_DUMP_TIMEOUT_S)
            sock.bind((0, 0))
            sock.send(request)
            while True:
                for kind, flags, message in _split(sock.recv(_READ_BYTES)):
                    interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                    if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                        if interrupted:
                            raise InterruptedError
                        return answer
                    answer.append((kind, message))
                    if not flags & _NLM_F_MULTI:
                        return answer

    def _facts(self, kind: int, message: bytes) -> Iterator[Fact]:
        match kind:
            case 16 | 17:  # RTM_NEWLINK, RTM_DELLINK
                family, _, index, _ = _INTERFACE.unpack_from(message, _NLMSG_HEADER.size)
                if family == socket.AF_UNSPEC:  # else a bridge speaks of one of its ports
                    yield _interface(message) if kind == _RTM_NEWLINK else InterfaceGone(index)
            case 20 | 21:  # RTM_NEWADDR, RTM_DELADDR
                found = _address(message)
                if found is not None:
                    yield found if kind == _RTM_NEWADDR else AddressGone(found.index, found.address)
            case 24 | 25:  # RTM_NEWROUTE, RTM_DELROUTE
                yield RoutesChanged()


def _records(data: bytes, at: int, header: struct.Struct) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Header and bytes of each record from a place on: it begins with its length, and the next at a multiple of 4."""
    while at + header.size <= len(data):
        fields: tuple[int, ...] = header.unpack_from(data, at)
        length = fields[0]
        if length < header.size:
            return
        yield fields, data[at : at + length]
        at += (length + 3) & ~3


def _split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and bytes of each message in a datagram."""
    for (_length, kind, flags, _sequence, _port), message in _records(data, 0, _NLMSG_HEADER):
        yield kind, flags, message


def _interface(message: bytes) -> Interface:
    _, hardware, index, flags = _INTERFACE.unpack_from(message, _NLMSG_HEADER.size)
    attributes = _attributes(message, _NLMSG_HEADER.size + _INTERFACE.size)
    mtu = attributes.get(_IFLA_MTU)
    running = _IFF_UP | _IFF_RUNNING | _IFF_LOWER_UP
    return Interface(
        index=index,
        name=os.fsdecode(attributes[_IFLA_IFNAME].rstrip(b"\0")),
        is_up=bool(flags & _IFF_UP),
        is_running=flags & running == running,
        is_loopback=bool(flags & _IFF_LOOPBACK),
        mtu=None if mtu is None else _number(mtu),
        hardware=hardware,
    )


def _attributes(message: bytes, at: int) -> dict[int, bytes]:
    """The attributes from a place on, by type."""
    records = _records(message, at, _ATTRIBUTE)
    return {kind & _NLA_TYPE_MASK: attribute[_ATTRIBUTE.size :] for (_length, kind), attribute in records}


def _address(message: bytes) -> InterfaceAddress | None:
    """None for what cannot be the source of a connection beyond the local network."""
    family, flags, scope, index = _ADDRESS.unpack_from(message, _NLMSG_HEADER.size)
    attributes = _attributes(message, _NLMSG_HEADER.size + _ADDRESS.size)
    # Of a point-to-point interface IFA_ADDRESS is the other end's.
    packed = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
    if packed is None or family not in _FAMILIES or scope not in (_SCOPE_UNIVERSE, _SCOPE_SITE):
        return None
    address = ip_address(packed)
    if address.is_link_local or address.is_loopback or address.is_multicast:
        return None
    if _IFA_FLAGS in attributes:
        flags = _number(attributes[_IFA_FLAGS])
    # An optimistic address may be used while its uniqueness is still being checked (RFC 4429).
    in_doubt = flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC
    return InterfaceAddress(
        index=index,
        address=address,
        is_usable=not in_doubt and not flags & _IFA_F_DADFAILED,
        is_deprecated=bool(flags & _IFA_F_DEPRECATED),
        # The flag has another meaning in IPv4: "secondary".
        is_temporary=isinstance(address, IPv6Address) and bool(flags & _IFA_F_TEMPORARY),
    )


def _routes(message: bytes) -> Iterator[Route]:
    """One for each interface of a multipath route; none for the host's own addresses and broadcasts."""
    family, prefix_length, table, kind = _ROUTE.unpack_from(message, _NLMSG_HEADER.size)
    if table == _TABLE_LOCAL or kind != _TYPE_UNICAST or family not in _FAMILIES:
        return
    attributes = _attributes(message, _NLMSG_HEADER.size + _ROUTE.size)
    destination = ip_network((attributes.get(_RTA_DST, _FAMILIES[family]), prefix_length))
    if destination.is_link_local or destination.is_multicast:
        return
    metric = _number(attributes.get(_RTA_PRIORITY, b""))
    one = [_number(attributes[_RTA_OIF])] if _RTA_OIF in attributes else []
    hops = _records(attributes.get(_RTA_MULTIPATH, b""), 0, _NEXT_HOP)
    for index in one or [index for (_length, index), _hop in hops]:
        if index:
            yield Route(index, destination, metric)


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
