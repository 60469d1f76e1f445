"""UDP between a client and the proxy: the datagrams of an application, carried in authenticated ones.

A *UDP flow* is an association of RFC 1928 section 7 that outlives its paths. It has a number that the client has never
used before, and at the proxy one socket toward all servers. Each link that carries it, one after the other, is a
*generation* of it. The proxy answers to where the newest authentic datagram of the highest generation came from.

These datagrams go to the same port as the probes (`msocks.protocol.probe`), of which the second byte tells them apart.
They have keys of their own, and numbers that are taken once (`msocks.protocol.replay`). Nothing is encrypted.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from msocks.errors import ProtocolFault
from msocks.protocol.fields import MAX_U32, MAX_U64, check_range, require
from msocks.protocol.socks5_udp import take_address
from msocks.protocol.socks5_wire import encode_address
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId

UDP_FLOW_VERSION = 1
KEY_LABEL = b"msocks udp v1"
MAC_BYTES = 16

# version, type, 2 reserved, association, flow, generation, number
_HEADER = struct.Struct(">BB2x16sIIQ")
# status or zero, 3 reserved
_NOTE = struct.Struct(">B3x")
NOTE_BYTES = _HEADER.size + _NOTE.size + MAC_BYTES
"""The size of everything but application datagrams: an answer is as long as its question."""
OVERHEAD_BYTES = _HEADER.size + MAC_BYTES
"""What an application's datagram grows by besides its address: 7 bytes for IPv4, 19 for IPv6, 4 + length for a name."""

_ATTACH, _STATE, _UP, _DOWN, _DETACH = 3, 4, 5, 6, 7
_TYPES = frozenset((_ATTACH, _STATE, _UP, _DOWN, _DETACH))


class FlowStatus(IntEnum):
    """The proxy's word on a flow. A number that is not listed reads as ENDED."""

    OPEN = 0
    """It stands, and its datagrams go to where the ATTACH came from, unless a newer one has come."""
    ENDED = 1
    """There is no such flow: it was silent for too long, was detached, or was never opened. A used number is spent."""
    LIMIT = 2
    """It cannot be opened: the user, or the proxy, has as many as are allowed. Its number may be tried again."""


_STATUSES = frozenset(FlowStatus)


@dataclass(frozen=True, slots=True)
class _Numbered:
    """What all datagrams say.

    Attributes:
        association: Whose keys authenticate it.
        flow: Which flow of the association, 1 to 2^32-1.
        generation: Which of the flow's paths it belongs to, 1 to 2^32-1.
        number: Of the datagram, in its direction of the flow, 0 to 2^64-1; in a `State`, that of what it answers.

    Raises:
        ValueError: A field is outside its range.
    """

    association: AssociationId
    flow: int
    generation: int
    number: int

    def __post_init__(self) -> None:
        if not self.flow or not self.generation:
            raise ValueError("flows and generations are counted from 1")
        check_range(self.flow, MAX_U32, "the flow")
        check_range(self.generation, MAX_U32, "the generation")
        check_range(self.number, MAX_U64, "the number")


@dataclass(frozen=True, slots=True)
class Attach(_Numbered):
    """Client: this is where I am. Opens the flow where its number is new; keeps NAT mappings alive where it is not."""


@dataclass(frozen=True, slots=True)
class State(_Numbered):
    """Proxy: the answer to an `Attach` or a `Detach`, and to a datagram of a flow that there is not.

    Attributes:
        status: How it stands.
    """

    status: FlowStatus


@dataclass(frozen=True, slots=True)
class Up(_Numbered):
    """Client: a datagram of the application.

    Attributes:
        destination: Where to; a name is resolved by the proxy.
        payload: The application's bytes.
    """

    destination: Endpoint
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Down(_Numbered):
    """Proxy: a datagram for the application.

    Attributes:
        source: Where from; an address.
        payload: The application's bytes.
    """

    source: Endpoint
    payload: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _Numbered.__post_init__(self)
        if self.source.address is None:
            raise ValueError(f"the source {self.source} is a name")


@dataclass(frozen=True, slots=True)
class Detach(_Numbered):
    """Client: the flow is over."""


UdpFlowMessage: TypeAlias = Attach | State | Up | Down | Detach


def udp_flow_key(leg_key: bytes) -> bytes:
    """The 32-byte key for a direction's UDP flows, derived from the association's key of that direction."""
    return hmac.digest(leg_key, KEY_LABEL, "sha256")


def is_udp_flow(datagram: bytes) -> bool:
    """Whether a datagram to the proxy's port is to be read by `decode_udp_flow`."""
    return len(datagram) > 1 and datagram[1] in _TYPES


def encode_udp_flow(message: UdpFlowMessage, key: bytes) -> bytes:
    """The datagram of a message, with `key` from `udp_flow_key` of the direction it goes."""
    match message:
        case Attach():
            kind, body = _ATTACH, _NOTE.pack(0)
        case State(status=status):
            kind, body = _STATE, _NOTE.pack(status)
        case Up(destination=destination, payload=payload):
            kind, body = _UP, encode_address(destination) + payload
        case Down(source=source, payload=payload):
            kind, body = _DOWN, encode_address(source) + payload
        case Detach():
            kind, body = _DETACH, _NOTE.pack(0)
    head = _HEADER.pack(
        UDP_FLOW_VERSION, kind, message.association.value, message.flow, message.generation, message.number
    )
    signed = head + body
    return signed + hmac.digest(key, signed, "sha256")[:MAC_BYTES]


@dataclass(frozen=True, slots=True)
class SignedUdpFlow:
    """A datagram as it came: well-formed, and nothing more until `verify` says so.

    Attributes:
        message: What it says.
        datagram: All of it.
    """

    message: UdpFlowMessage
    datagram: bytes = field(repr=False)

    def verify(self, key: bytes) -> bool:
        """Whether the MAC was made with `key`. Takes the same time for every wrong MAC."""
        signed, mac = self.datagram[:-MAC_BYTES], self.datagram[-MAC_BYTES:]
        return hmac.compare_digest(mac, hmac.digest(key, signed, "sha256")[:MAC_BYTES])


def decode_udp_flow(datagram: bytes) -> SignedUdpFlow:
    """Read a datagram.

    Raises:
        ProtocolError: It is malformed: ignore it, and answer nothing.
    """
    size = len(datagram)
    require(size >= OVERHEAD_BYTES, f"a datagram of a UDP flow has {size} bytes", ProtocolFault.LENGTH)
    version, kind, association, flow, generation, number = _HEADER.unpack_from(datagram)
    require(version == UDP_FLOW_VERSION, f"the version {version} of UDP flows is not spoken", ProtocolFault.VERSION)
    require(kind in _TYPES, f"the datagram type {kind} is not defined", ProtocolFault.TYPE)
    require(datagram[2:4] == b"\0\0", "reserved bytes of a UDP flow's datagram are not zero")
    require(any(association), "the association id is all zero")
    require(flow != 0 and generation != 0, "a flow or a generation is zero")
    common = AssociationId(association), flow, generation, number
    message = _with_address(kind, common, datagram) if kind in (_UP, _DOWN) else _note(kind, common, datagram)
    return SignedUdpFlow(message, datagram)


_Common: TypeAlias = tuple[AssociationId, int, int, int]


def _with_address(kind: int, common: _Common, datagram: bytes) -> UdpFlowMessage:
    body = datagram[_HEADER.size : -MAC_BYTES]
    endpoint, size = take_address(body, 0)
    if kind == _UP:
        return Up(*common, endpoint, body[size:])
    require(endpoint.address is not None, "the source of a datagram is a name", ProtocolFault.ADDRESS)
    return Down(*common, endpoint, body[size:])


def _note(kind: int, common: _Common, datagram: bytes) -> UdpFlowMessage:
    require(len(datagram) == NOTE_BYTES, f"a datagram of type {kind} has {len(datagram)} bytes", ProtocolFault.LENGTH)
    (status,) = _NOTE.unpack_from(datagram, _HEADER.size)
    reserved = datagram[_HEADER.size + (kind == _STATE) : -MAC_BYTES]
    require(not any(reserved), "reserved bytes of a UDP flow's datagram are not zero")
    if kind == _STATE:
        return State(*common, FlowStatus(status) if status in _STATUSES else FlowStatus.ENDED)
    return Attach(*common) if kind == _ATTACH else Detach(*common)
