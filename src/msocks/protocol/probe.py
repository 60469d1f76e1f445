"""Path probes: UDP datagrams of 72 bytes to the proxy's port, answered with as many.

A probe finds out whether a path lives and how long it takes, and under which address the proxy sees the client. A
position query asks what has arrived of a session's upstream, while the connection for the next leg is still being made.
Neither moves anything: no state of a session depends on one.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from typing import TypeAlias

from msocks.errors import ProtocolFault
from msocks.protocol.fields import (
    FIXED_ADDRESS_BYTES,
    MAX_OFFSET,
    MAX_U64,
    check_range,
    decode_fixed_address,
    encode_fixed_address,
    require,
)
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId

PROBE_VERSION = 1
PROBE_MAC_BYTES = 16
KEY_LABEL = b"msocks probe v1"

# version, type, 2 reserved, association, sequence, time, observed address
_PROBE = struct.Struct(f">BB2x16sQQ{FIXED_ADDRESS_BYTES}s")
# version, type, 2 reserved, association, sequence, session, offset, 4 reserved
_POSITION = struct.Struct(">BB2x16sQ16sQ4x")
PROBE_BYTES = _PROBE.size + PROBE_MAC_BYTES
assert _POSITION.size == _PROBE.size

_REQUEST, _ANSWER, _QUERY, _POSITION_OF = 1, 2, 8, 9
_KINDS = (_REQUEST, _ANSWER, _QUERY, _POSITION_OF)


@dataclass(frozen=True, slots=True)
class Probe:
    """Client to proxy: are you there?

    Attributes:
        association: Whose keys authenticate it.
        sequence: Never used twice in the association, 0 to 2^64-1.
        time: When it was sent, in microseconds of a clock of the client's own, 0 to 2^64-1.
    """

    association: AssociationId
    sequence: int
    time: int

    def __post_init__(self) -> None:
        check_range(self.sequence, MAX_U64, "the sequence number")
        check_range(self.time, MAX_U64, "the time")


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """Proxy to client: here, and this is where I see you.

    Attributes:
        association: As in the probe.
        sequence: As in the probe.
        time: As in the probe, and as many microseconds later as the proxy's host had the probe before the answer: what
            has passed on the client's clock since then is the path's round trip, however busy the proxy is.
        observed: The source address and port of the probe as the proxy saw them. A change means that a NAT on the way
            forgot its mapping.
    """

    association: AssociationId
    sequence: int
    time: int
    observed: Endpoint

    def __post_init__(self) -> None:
        check_range(self.sequence, MAX_U64, "the sequence number")
        check_range(self.time, MAX_U64, "the time")
        if self.observed.address is None:
            raise ValueError(f"the observed address {self.observed} is a name")


@dataclass(frozen=True, slots=True)
class PositionQuery:
    """Client to proxy: how far has this session's upstream come?

    Attributes:
        association: Whose keys authenticate it, and whose user has the session.
        sequence: As in a probe, of the same numbers.
        session: Which.
    """

    association: AssociationId
    sequence: int
    session: SessionId

    def __post_init__(self) -> None:
        check_range(self.sequence, MAX_U64, "the sequence number")


@dataclass(frozen=True, slots=True)
class Position:
    """Proxy to client: so far. There is no answer about a session that the user has not.

    Attributes:
        association: As in the query.
        sequence: As in the query.
        session: As in the query.
        received: U, as in `msocks.protocol.leg`: it only grows, so that an old answer says too little at worst.
    """

    association: AssociationId
    sequence: int
    session: SessionId
    received: int

    def __post_init__(self) -> None:
        check_range(self.sequence, MAX_U64, "the sequence number")
        check_range(self.received, MAX_OFFSET, "the received bytes")


ProbeMessage: TypeAlias = Probe | ProbeAnswer | PositionQuery | Position


def probe_key(leg_key: bytes) -> bytes:
    """The 32-byte key for the probes of a direction, derived from the association's key of that direction.

    Probes have keys of their own so that nothing made for a datagram can ever pass on a leg.
    """
    return hmac.digest(leg_key, KEY_LABEL, "sha256")


def _mac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, "sha256")[:PROBE_MAC_BYTES]


def encode_probe(message: ProbeMessage, key: bytes) -> bytes:
    """The datagram of a probe or an answer, with `key` from `probe_key` of the direction it goes."""
    match message:
        case Probe(association, sequence, time):
            rest = association.value, sequence, time, encode_fixed_address(None)
            signed = _PROBE.pack(PROBE_VERSION, _REQUEST, *rest)
        case ProbeAnswer(association, sequence, time, observed):
            rest = association.value, sequence, time, encode_fixed_address(observed)
            signed = _PROBE.pack(PROBE_VERSION, _ANSWER, *rest)
        case PositionQuery(association, sequence, session):
            signed = _POSITION.pack(PROBE_VERSION, _QUERY, association.value, sequence, session.value, 0)
        case Position(association, sequence, session, received):
            signed = _POSITION.pack(PROBE_VERSION, _POSITION_OF, association.value, sequence, session.value, received)
    return signed + _mac(key, signed)


@dataclass(frozen=True, slots=True)
class SignedProbe:
    """A datagram as it came: well-formed, and nothing more until `verify` says so.

    Attributes:
        message: What it says.
        signed: The bytes under the MAC.
        mac: The 16 bytes that claim to be the MAC.
    """

    message: ProbeMessage
    signed: bytes = field(repr=False)
    mac: bytes = field(repr=False)

    def verify(self, key: bytes) -> bool:
        """Whether the MAC was made with `key`. Takes the same time for every wrong MAC."""
        return hmac.compare_digest(self.mac, _mac(key, self.signed))


def decode_probe(datagram: bytes) -> SignedProbe:
    """Read a datagram.

    Raises:
        ProtocolError: It is malformed: ignore it, and answer nothing.
    """
    require(len(datagram) == PROBE_BYTES, f"a probe has {len(datagram)} bytes", ProtocolFault.LENGTH)
    version, kind = datagram[:2]
    require(version == PROBE_VERSION, f"the probe version {version} is not spoken here", ProtocolFault.VERSION)
    require(kind in _KINDS, f"the probe type {kind} is not defined", ProtocolFault.TYPE)
    require(datagram[2:4] == b"\0\0", "reserved bytes of a probe are not zero")
    message = _decode_probe(datagram) if kind in (_REQUEST, _ANSWER) else _decode_position(datagram)
    return SignedProbe(message, datagram[: _PROBE.size], datagram[_PROBE.size :])


def _decode_probe(datagram: bytes) -> Probe | ProbeAnswer:
    _, kind, association, sequence, time, address = _PROBE.unpack_from(datagram)
    require(any(association), "the association id is all zero")
    observed = decode_fixed_address(address)
    require((observed is None) is (kind == _REQUEST), "a probe has an observed address, or an answer has none")
    if observed is None:
        return Probe(AssociationId(association), sequence, time)
    return ProbeAnswer(AssociationId(association), sequence, time, observed)


def _decode_position(datagram: bytes) -> PositionQuery | Position:
    _, kind, association, sequence, session, offset = _POSITION.unpack_from(datagram)
    require(any(association) and any(session), "an id is all zero")
    require(not any(datagram[_POSITION.size - 4 : _POSITION.size]), "reserved bytes of a position are not zero")
    if kind == _QUERY:
        require(not offset, "a position query has an offset")
        return PositionQuery(AssociationId(association), sequence, SessionId(session))
    require(offset <= MAX_OFFSET, "an offset is too large")
    return Position(AssociationId(association), sequence, SessionId(session), offset)
