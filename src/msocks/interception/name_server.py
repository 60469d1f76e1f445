"""Answers a program's questions to name servers with addresses that stand for names (RFC 1035). Sans-IO.

It knows no more than that: whether a name exists shows when the proxy connects. So an address is given for every name,
nothing for types of which a connection needs none, and other types are not implemented.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from msocks.errors import AddressError
from msocks.interception.name_pool import NamePool

MAX_BYTES = 512
"""Of a message over UDP (RFC 1035 section 2.3.4); all that is answered here fits."""

_HEADER = struct.Struct("!HHHHHH")
_QUERY_BITS, _RECURSION_DESIRED = 0xF800, 0x0100  # QR and opcode
_ANSWER_BITS = 0x8080  # an answer; recursion is available
_FORMAT_ERROR, _NO_SUCH_NAME, _NOT_IMPLEMENTED = 1, 3, 4
_A, _PTR, _AAAA, _SVCB, _HTTPS = 1, 12, 28, 64, 65
_IN = 1
_TTL_S = 1  # the pool may give an address to another name
_POINTER_TO_QUESTION = 0xC00C


def answer(query: bytes, pool: NamePool) -> bytes | None:
    """The answer to one message; None where it deserves none."""
    if len(query) < _HEADER.size:
        return None
    identity, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & 0x8000:
        return None
    kept = flags & _RECURSION_DESIRED
    if flags & _QUERY_BITS or questions != 1:
        return _message(identity, kept | (_NOT_IMPLEMENTED if flags & _QUERY_BITS else _FORMAT_ERROR), b"", b"")
    labels, end = _labels(query)
    if labels is None or end + 4 > len(query):
        return _message(identity, kept | _FORMAT_ERROR, b"", b"")
    kind, domain = struct.unpack_from("!HH", query, end)
    code, data = _look_up(labels, kind, pool) if domain == _IN else (_NOT_IMPLEMENTED, b"")
    record = struct.pack("!HHHIH", _POINTER_TO_QUESTION, kind, _IN, _TTL_S, len(data)) + data if data else b""
    return _message(identity, kept | code, query[_HEADER.size : end + 4], record)


def _message(identity: int, flags: int, question: bytes, record: bytes) -> bytes:
    counts = (1 if question else 0, 1 if record else 0, 0, 0)
    return _HEADER.pack(identity, _ANSWER_BITS | flags, *counts) + question + record


def _labels(query: bytes) -> tuple[list[str] | None, int]:
    """The name that is asked for, and where it ends."""
    labels, place = [], _HEADER.size
    while place < len(query) and (length := query[place]):
        if length > 63 or place + 1 + length > len(query):  # a question has nothing to point to
            return None, place
        labels.append(query[place + 1 : place + 1 + length].decode("latin-1"))
        place += 1 + length
    return (labels, place + 1) if place < len(query) else (None, place)


def _look_up(labels: list[str], kind: int, pool: NamePool) -> tuple[int, bytes]:
    """The code of the answer, and its data: none where there is no such record."""
    name = ".".join(labels)
    try:
        if kind == _PTR:
            found = pool.name(_reversed(labels))
            return (0, _wire(found)) if found is not None else (_NO_SUCH_NAME, b"")
        if name.lower() == "localhost" or name.lower().endswith(".localhost"):  # RFC 6761 section 6.3
            ipv4, ipv6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
        else:
            ipv4, ipv6 = pool.addresses(name)
    except (AddressError, ValueError, LookupError):
        return _NO_SUCH_NAME, b""
    data = {_A: ipv4.packed, _AAAA: ipv6.packed, _SVCB: b"", _HTTPS: b""}.get(kind)
    return (_NOT_IMPLEMENTED, b"") if data is None else (0, data)


def _reversed(labels: list[str]) -> IPv4Address | IPv6Address:
    """The address of a reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5). Raises ValueError."""
    match labels:
        case [*octets, zone, arpa] if (zone.lower(), arpa.lower()) == ("in-addr", "arpa"):
            return IPv4Address(".".join(reversed(octets)))
        case [*digits, zone, arpa] if (zone.lower(), arpa.lower()) == ("ip6", "arpa") and len(digits) == 32:
            return IPv6Address(int("".join(reversed(digits)), 16))
    raise ValueError(labels)


def _wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.rstrip(".").split(".")) + b"\0"
