"""Path probes: UDP datagrams of 72 bytes to the proxy's port, answered with as many.

A probe finds out whether a path lives and how long it takes, and under which address the proxy sees the client. It
moves nothing: no state of a session depends on one.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from typing import TypeAlias

from msocks.errors import ProtocolFault
from msocks.protocol.fields import (
    FIXED_ADDRESS_BYTES,
    MAX_U64,
    check_range,
    decode_fixed_address,
    encode_fixed_address,
    require,
)
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId

PROBE_VERSION = 1
PROBE_MAC_BYTES = 16
KEY_LABEL = b"msocks probe v1"

# version, type, 2 reserved, association, sequence, time, observed address
_PROBE = struct.Struct(f">BB2x16sQQ{FIXED_ADDRESS_BYTES}s")
PROBE_BYTES = _PROBE.size + PROBE_MAC_BYTES

_REQUEST, _ANSWER = 1, 2


@dataclass(frozen=True, slots=True)
class Probe:
    """Client to proxy: are you there?

    Attributes:
        association: Whose keys authenticate it.
        sequence: Never used twice in the association, 0 to 2^64-1.
        time: The client's own notion of time, 0 to 2^64-1, returned as it is.
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
        time: As in the probe.
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


ProbeMessage: TypeAlias = Probe | ProbeAnswer


def probe_key(leg_key: bytes) -> bytes:
    """The 32-byte key for the probes of a direction, derived from the association's key of that direction.

    Probes have keys of their own so that nothing made for a datagram can ever pass on a leg.
    """
    return hmac.digest(leg_key, KEY_LABEL, "sha256")


def _mac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, "sha256")[:PROBE_MAC_BYTES]


def encode_probe(message: ProbeMessage, key: bytes) -> bytes:
    """The datagram of a probe or an answer, with `key` from `probe_key` of the direction it goes."""
    kind, observed = (_ANSWER, message.observed) if isinstance(message, ProbeAnswer) else (_REQUEST, None)
    signed = _PROBE.pack(
        PROBE_VERSION,
        kind,
        message.association.value,
        message.sequence,
        message.time,
        encode_fixed_address(observed),
    )
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
    version, kind, association, sequence, time, address = _PROBE.unpack_from(datagram)
    require(version == PROBE_VERSION, f"the probe version {version} is not spoken here", ProtocolFault.VERSION)
    require(kind in (_REQUEST, _ANSWER), f"the probe type {kind} is not defined", ProtocolFault.TYPE)
    require(datagram[2:4] == b"\0\0", "reserved bytes of a probe are not zero")
    require(any(association), "the association id is all zero")
    observed = decode_fixed_address(address)
    require((observed is None) is (kind == _REQUEST), "a probe has an observed address, or an answer has none")
    message: ProbeMessage
    if observed is None:
        message = Probe(AssociationId(association), sequence, time)
    else:
        message = ProbeAnswer(AssociationId(association), sequence, time, observed)
    return SignedProbe(message, datagram[: _PROBE.size], datagram[_PROBE.size :])
