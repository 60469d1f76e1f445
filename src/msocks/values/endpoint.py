"""Hosts and endpoints.

A host is an IPv4 address, an IPv6 address or a name. A name is ASCII, as it goes into a SOCKS request and to the
resolver: 1 to 255 bytes, labels of 1 to 63 letters, digits, hyphens and underscores, divided by dots, with or without
the root's dot at the end. What is an IP address in its usual notation is never a name. Names in other scripts are
converted where people type them (`parse_host`) with Python's ``idna`` codec (RFC 3490), the conversion that
`socket.getaddrinfo` makes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Self, TypeAlias

from msocks.errors import AddressError

Address: TypeAlias = IPv4Address | IPv6Address
Host: TypeAlias = IPv4Address | IPv6Address | str

MAX_NAME_BYTES = 255
"""RFC 1928 section 5: the length of a name is one byte."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_PORT = re.compile(r"[0-9]{1,5}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _as_address(text: str) -> Address | None:
    for kind in (IPv4Address, IPv6Address):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def check_name(name: str) -> str:
    """Return `name` if it is a host name by the rules above.

    Raises:
        AddressError: It is not, or it is an IP address.
    """
    if not name:
        raise AddressError("the host name is empty")
    if len(name) > MAX_NAME_BYTES:
        raise AddressError(f"the host name has {len(name)} bytes, more than {MAX_NAME_BYTES}")
    if _NAME.fullmatch(name) is None:
        raise AddressError(
            f"{_shown(name)} is not a host name",
            remedy="a name consists of labels of 1 to 63 letters, digits, hyphens and underscores, divided by dots",
        )
    if name[-1].isdigit() and _as_address(name) is not None:
        raise AddressError(f"{_shown(name)} is an IP address, not a name")
    return name


def parse_host(text: str) -> Host:
    """Read a host as a person writes it: an IP address without brackets, or a name in any script.

    Raises:
        AddressError: The text is neither.
    """
    address = _as_address(text)
    if address is not None:
        return _check_scope(address)
    if not text.isascii():
        if len(text) > MAX_NAME_BYTES:
            raise AddressError(f"the host name has {len(text)} characters, more than {MAX_NAME_BYTES}")
        try:
            text = text.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise AddressError(f"{_shown(text)} is not a host name: {error}") from None
        if (address := _as_address(text)) is not None:
            return _check_scope(address)
    return check_name(text)


def parse_port(text: str) -> int:
    """Read a port number, 0 to 65535, in decimal digits.

    Raises:
        AddressError: The text is not one.
    """
    if _PORT.fullmatch(text) is None or int(text) > 65535:
        raise AddressError(f"{_shown(text)} is not a port number", remedy="a port is a number from 0 to 65535")
    return int(text)


def _check_scope(address: Address) -> Address:
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise AddressError(
            f"{address} has a zone (%{address.scope_id}), which means nothing to another host",
            remedy="use an address without a zone",
        )
    return address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port; printed and read as ``host:port``, IPv6 as ``[host]:port``.

    Attributes:
        host: An address without zone, or a name by the rules of this module.
        port: 0 to 65535. Zero is what "no port" is on the wire and what "any free port" is to a listener.

    Raises:
        AddressError: A field is outside its rules.
    """

    host: Host
    port: int

    def __post_init__(self) -> None:
        if isinstance(self.host, str):
            check_name(self.host)
        else:
            _check_scope(self.host)
        if not 0 <= self.port <= 65535:
            raise AddressError(f"{self.port} is not a port number", remedy="a port is a number from 0 to 65535")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host}:{self.port}"

    @property
    def address(self) -> Address | None:
        """The host where it is an address; None where it is a name and must be resolved."""
        return None if isinstance(self.host, str) else self.host

    @classmethod
    def of(cls, host: str, port: int) -> Self:
        """The endpoint of a host as a person writes it (see `parse_host`) and a port."""
        return cls(parse_host(host), port)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host:port`` or ``[v6]:port``; there is no default port.

        Raises:
            AddressError: The text is not an endpoint.
        """
        if text.startswith("["):
            host_text, bracket, rest = text[1:].partition("]")
            if not bracket or not rest.startswith(":"):
                raise AddressError(f"{_shown(text)} is not an endpoint", remedy="write [address]:port")
            host = parse_host(host_text)
            if not isinstance(host, IPv6Address):
                raise AddressError(f"{_shown(host_text)} is not an IPv6 address, so it needs no brackets")
            return cls(host, parse_port(rest[1:]))
        host_text, colon, port_text = text.rpartition(":")
        if not colon:
            raise AddressError(f"{_shown(text)} has no port", remedy="write host:port")
        if ":" in host_text:
            raise AddressError(
                f"{_shown(text)} is ambiguous", remedy="write an IPv6 address in brackets: [address]:port"
            )
        return cls(parse_host(host_text), parse_port(port_text))

    @classmethod
    def from_sockaddr(cls, sockaddr: tuple[Any, ...]) -> Self:
        """The endpoint of a socket address as `socket` gives it: (address, port) or (address, port, flow, scope).

        The zone goes, since it means nothing to anybody else, and an IPv4-mapped IPv6 address (RFC 4291 section
        2.5.5.2), which a dual-stack listener shows, becomes the IPv4 address that it is.
        """
        return cls(_address_of_socket(sockaddr[0]), sockaddr[1])


@lru_cache(maxsize=4096)
def _address_of_socket(text: str) -> Address:
    """Remembered: the same few come again with every connection, and reading one takes longer than all the rest."""
    text = text.partition("%")[0]
    if ":" not in text:
        return IPv4Address(text)
    address = IPv6Address(text)
    return address.ipv4_mapped or address
