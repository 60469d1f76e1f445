"""SOCKS version 5 (RFC 1928) and its username/password authentication (RFC 1929): codes and addresses."""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from msocks.errors import AddressError, ProtocolError, ProtocolFault
from msocks.values.endpoint import Endpoint, parse_host

VERSION = 0x05
PASSWORD_VERSION = 0x01

NO_ADDRESS = Endpoint(IPv4Address(0), 0)
"""What a reply carries where there is no bound address to tell."""


class Method(IntEnum):
    """Authentication methods (RFC 1928 section 3)."""

    NO_AUTHENTICATION = 0x00
    GSSAPI = 0x01
    USERNAME_PASSWORD = 0x02
    MSOCKS_LEG = 0x8D
    """Private method: an MSOCKS leg. Valid only as the sole method of a greeting."""
    NO_ACCEPTABLE = 0xFF


class Command(IntEnum):
    """Commands (RFC 1928 section 4)."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03


class AddressType(IntEnum):
    """Address types (RFC 1928 section 4)."""

    IPV4 = 0x01
    NAME = 0x03
    IPV6 = 0x04


class ReplyCode(IntEnum):
    """Reply codes (RFC 1928 section 6)."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


def encode_address(endpoint: Endpoint) -> bytes:
    """ATYP, address and port (RFC 1928 section 5): 7 bytes for IPv4, 19 for IPv6, 4 + length for a name."""
    port = endpoint.port.to_bytes(2, "big")
    match endpoint.host:
        case IPv4Address() as host:
            return b"\x01" + host.packed + port
        case IPv6Address() as host:
            return b"\x04" + host.packed + port
        case str() as name:
            return bytes((AddressType.NAME, len(name))) + name.encode("ascii") + port


def address_size(data: bytes | bytearray, offset: int) -> int | None:
    """The size in bytes of the address (ATYP to port) at `offset`; None while too few bytes are there to tell.

    Raises:
        ProtocolError: The address type is not defined, or the name is empty.
    """
    if offset >= len(data):
        return None
    kind = data[offset]
    if kind == AddressType.IPV4:
        return 7
    if kind == AddressType.IPV6:
        return 19
    if kind != AddressType.NAME:
        raise ProtocolError(ProtocolFault.TYPE, f"the SOCKS address type {kind:#04x} is not defined")
    if offset + 1 >= len(data):
        return None
    if data[offset + 1] == 0:
        raise ProtocolError(ProtocolFault.LENGTH, "a SOCKS message has a name of no bytes")
    return 4 + data[offset + 1]


@lru_cache(maxsize=1024)
def decode_address(data: bytes) -> Endpoint:
    """The endpoint in a complete address, ATYP to port. A name that is an IP address is read as that address.

    Remembered: the same few destinations come again and again, and reading one takes longer than the rest of a request.

    Raises:
        ProtocolError: The name is not a host name.
    """
    port = int.from_bytes(data[-2:], "big")
    if data[0] == AddressType.IPV4:
        return Endpoint(IPv4Address(data[1:5]), port)
    if data[0] == AddressType.IPV6:
        return Endpoint(IPv6Address(data[1:17]), port)
    try:
        return Endpoint(parse_host(data[2:-2].decode("ascii")), port)
    except (AddressError, UnicodeDecodeError) as error:
        raise ProtocolError(ProtocolFault.ADDRESS, f"a SOCKS message names a malformed host: {error}") from None
