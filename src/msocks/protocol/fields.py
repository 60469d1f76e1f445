"""Fields that several messages share: numbers with limits, and addresses of fixed size.

All numbers are unsigned and in network byte order.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from msocks.errors import AddressError, ProtocolError, ProtocolFault
from msocks.values.endpoint import Endpoint

MAX_U16 = 2**16 - 1
MAX_U32 = 2**32 - 1
MAX_U64 = 2**64 - 1
MAX_OFFSET = 2**63 - 1
"""Stream offsets stay below 2^63, so that no implementation needs more than a signed 64-bit number."""

FIXED_ADDRESS_BYTES = 20
"""Type (0 none, 1 IPv4, 4 IPv6), one zero byte, port, 16 bytes of address padded with zeros at the end."""

FIXED_HOST_BYTES = 260
"""Type (1 IPv4, 3 name, 4 IPv6), length in bytes, port, 256 bytes of host padded with zeros at the end."""

_FIXED_ADDRESS = struct.Struct(">BxH16s")
_FIXED_HOST = struct.Struct(">BBH256s")

_NONE, _IPV4, _NAME, _IPV6 = 0, 1, 3, 4


def check_range(value: int, maximum: int, field: str) -> int:
    """Return `value` if it is from 0 to `maximum`.

    Raises:
        ValueError: It is not: the calling program made a mistake.
    """
    if not 0 <= value <= maximum:
        raise ValueError(f"{field} is {value}, outside 0 to {maximum}")
    return value


def require(condition: bool, what: str, reason: ProtocolFault = ProtocolFault.FIELD) -> None:
    """Raise `ProtocolError` with `what` unless `condition` holds."""
    if not condition:
        raise ProtocolError(reason, what)


def decode_offset(value: int, field: str) -> int:
    """Return a received stream offset.

    Raises:
        ProtocolError: It is above `MAX_OFFSET`.
    """
    if value > MAX_OFFSET:
        raise ProtocolError(ProtocolFault.FIELD, f"{field} is {value}, above 2^63-1")
    return value


def encode_fixed_address(endpoint: Endpoint | None) -> bytes:
    """The 20 bytes of an address and port, or of none.

    Raises:
        ValueError: The endpoint is a name.
    """
    match endpoint:
        case None:
            return bytes(FIXED_ADDRESS_BYTES)
        case Endpoint(host=IPv4Address() as host, port=port):
            return _FIXED_ADDRESS.pack(_IPV4, port, host.packed)
        case Endpoint(host=IPv6Address() as host, port=port):
            return _FIXED_ADDRESS.pack(_IPV6, port, host.packed)
        case _:
            raise ValueError(f"{endpoint} is a name where only an address can stand")


def decode_fixed_address(data: bytes) -> Endpoint | None:
    """The address and port in 20 bytes; None where the type is "none".

    Raises:
        ProtocolError: The type is not defined, or what must be zero is not.
    """
    kind, port, packed = _FIXED_ADDRESS.unpack(data)
    require(data[1] == 0, "a reserved byte of an address is not zero")
    if kind == _IPV6:
        return Endpoint(IPv6Address(packed), port)
    if kind == _IPV4:
        require(not any(packed[4:]), "the padding of an IPv4 address is not zero")
        return Endpoint(IPv4Address(packed[:4]), port)
    require(kind == _NONE, f"the address type {kind} is not defined", ProtocolFault.ADDRESS)
    require(not any(packed) and port == 0, "an absent address is not all zero")
    return None


def encode_fixed_host(endpoint: Endpoint) -> bytes:
    """The 260 bytes of a host, which may be a name, and port."""
    match endpoint.host:
        case IPv4Address() as host:
            return _FIXED_HOST.pack(_IPV4, 4, endpoint.port, host.packed)
        case IPv6Address() as host:
            return _FIXED_HOST.pack(_IPV6, 16, endpoint.port, host.packed)
        case str() as name:
            return _FIXED_HOST.pack(_NAME, len(name), endpoint.port, name.encode("ascii"))


def decode_fixed_host(data: bytes) -> Endpoint:
    """The host and port in 260 bytes.

    Raises:
        ProtocolError: Type or length is not allowed, the name is no host name or an IP address, or padding is not zero.
    """
    kind, length, port, field = _FIXED_HOST.unpack(data)
    host = field[:length]
    require(not any(field[length:]), "the padding of a host is not zero")
    if kind == _NAME:
        return Endpoint(decode_name(host), port)
    if kind == _IPV4 and length == 4:
        return Endpoint(IPv4Address(host), port)
    if kind == _IPV6 and length == 16:
        return Endpoint(IPv6Address(host), port)
    raise ProtocolError(ProtocolFault.ADDRESS, f"the host type {kind} of {length} bytes is not defined")


def decode_name(data: bytes) -> str:
    """A host name on the wire. The result fits `Endpoint`.

    Raises:
        ProtocolError: The bytes are no host name (see `msocks.values.endpoint`), or are an IP address.
    """
    try:
        name = data.decode("ascii")
        Endpoint(name, 0)
    except (UnicodeDecodeError, AddressError) as error:
        raise ProtocolError(ProtocolFault.ADDRESS, f"a name is malformed: {error}") from None
    return name
