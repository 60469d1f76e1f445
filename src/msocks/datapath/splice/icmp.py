"""ICMP errors (RFC 792, RFC 4443) about spliced packets: read from one leg, made anew for the other.

A router on one leg answers a packet that the proxy has sent, with the proxy as its source; the end that really sent
it is on the other leg, knows other addresses and sequence numbers, and may speak the other version of IP. An error
is therefore taken apart and made again, quoting the packet as that end had sent it.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import Enum, auto

from msocks.datapath.splice.segments import MAPPED_PREFIX, End, ipv4_header, ipv6_header

_ICMP, _TCP, _ICMPV6 = 1, 6, 58
_HEADER_BYTES = 8
_SMALLEST_IPV4_MTU = 68  # RFC 791
_LARGEST_IPV4_MTU = 0xFFFF
_SMALLEST_IPV6_MTU = 1280  # RFC 8200 section 5: nobody need send less
_IPV6_EXCESS_BYTES = 20  # by which an IPv6 header is longer than one of IPv4
# So that an error is never too large itself: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c).
_LONGEST_ERROR_BYTES = {socket.AF_INET: 576, socket.AF_INET6: _SMALLEST_IPV6_MTU}
# What the MTU probably is where an old router does not tell (RFC 1191 section 7.1).
_PLATEAUS = (32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)


class Trouble(Enum):
    """What a router or a host says of a packet."""

    TOO_BIG = auto()
    NO_ROUTE = auto()
    HOST_UNREACHABLE = auto()
    PORT_UNREACHABLE = auto()
    PROHIBITED = auto()
    HOPS_EXCEEDED = auto()


_TOLD_BY_IPV4 = {
    **{(3, code): Trouble.NO_ROUTE for code in (0, 5, 6, 11)},
    **{(3, code): Trouble.HOST_UNREACHABLE for code in (1, 7, 8, 12)},
    (3, 3): Trouble.PORT_UNREACHABLE,
    (3, 4): Trouble.TOO_BIG,
    **{(3, code): Trouble.PROHIBITED for code in (9, 10, 13, 15)},
    (11, 0): Trouble.HOPS_EXCEEDED,
}
_TOLD_BY_IPV6 = {
    (1, 0): Trouble.NO_ROUTE,
    **{(1, code): Trouble.HOST_UNREACHABLE for code in (2, 3)},
    (1, 4): Trouble.PORT_UNREACHABLE,
    **{(1, code): Trouble.PROHIBITED for code in (1, 5, 6)},
    (2, 0): Trouble.TOO_BIG,
    (3, 0): Trouble.HOPS_EXCEEDED,
}
# Across the versions these agree with RFC 7915 sections 4.2 and 5.2.
_TELL_BY_IPV4 = {
    Trouble.TOO_BIG: (3, 4),
    Trouble.NO_ROUTE: (3, 0),
    Trouble.HOST_UNREACHABLE: (3, 1),
    Trouble.PORT_UNREACHABLE: (3, 3),
    Trouble.PROHIBITED: (3, 13),
    Trouble.HOPS_EXCEEDED: (11, 0),
}
_TELL_BY_IPV6 = {
    Trouble.TOO_BIG: (2, 0),
    Trouble.NO_ROUTE: (1, 0),
    Trouble.HOST_UNREACHABLE: (1, 3),
    Trouble.PORT_UNREACHABLE: (1, 4),
    Trouble.PROHIBITED: (1, 1),
    Trouble.HOPS_EXCEEDED: (3, 0),
}


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An error about a TCP packet.

    Attributes:
        trouble: What it says.
        family: AF_INET or AF_INET6, of the error and of the packet.
        reporter: Who says it: an address of 16 bytes. Anybody can say anything: only a packet whose sequence number
            is in flight is worth an answer (RFC 5927 section 4.1).
        source: Where the packet came from: this host's end of the leg.
        destination: Where it went: the other end.
        sequence: Its sequence number, as the leg counts.
        mtu: Of TOO_BIG, in bytes of a whole IP packet; otherwise 0.
    """

    trouble: Trouble
    family: socket.AddressFamily
    reporter: bytes
    source: End
    destination: End
    sequence: int
    mtu: int


def parse_error(packet: bytes) -> IcmpError | None:
    """The error in a whole IP packet; None where it is none, not one about TCP, or not intact.

    Fragments and IPv6 packets with extension headers are not looked into.
    """
    try:
        match packet[0] >> 4:
            case 4:
                return _parse_ipv4(packet)
            case 6:
                return _parse_ipv6(packet)
    except (IndexError, struct.error):
        pass  # it ends too early
    return None


def _parse_ipv4(packet: bytes) -> IcmpError | None:
    length = int.from_bytes(packet[2:4], "big")
    icmp = packet[(packet[0] & 15) * 4 : length]
    kind, code, _, _, mtu = struct.unpack_from("!BBHHH", icmp)
    trouble = _TOLD_BY_IPV4.get((kind, code))
    if len(packet) < length or packet[9] != _ICMP or trouble is None:
        return None
    if int.from_bytes(_padded(icmp), "big") % 0xFFFF:
        return None
    quoted = icmp[_HEADER_BYTES:]
    fragment_offset = int.from_bytes(quoted[6:8], "big") & 0x1FFF
    if quoted[0] >> 4 != 4 or quoted[9] != _TCP or fragment_offset:
        return None
    source_port, destination_port, sequence = struct.unpack_from("!HHI", quoted, (quoted[0] & 15) * 4)
    if trouble is Trouble.TOO_BIG:
        quoted_length = int.from_bytes(quoted[2:4], "big")
        mtu = mtu or next((plateau for plateau in _PLATEAUS if plateau < quoted_length), _PLATEAUS[-1])
    return IcmpError(
        trouble=trouble,
        family=socket.AF_INET,
        reporter=MAPPED_PREFIX + packet[12:16],
        source=(MAPPED_PREFIX + quoted[12:16], source_port),
        destination=(MAPPED_PREFIX + quoted[16:20], destination_port),
        sequence=sequence,
        mtu=mtu if trouble is Trouble.TOO_BIG else 0,
    )


def _parse_ipv6(packet: bytes) -> IcmpError | None:
    length = 40 + int.from_bytes(packet[4:6], "big")
    icmp = packet[40:length]
    kind, code, _, mtu = struct.unpack_from("!BBHI", icmp)
    trouble = _TOLD_BY_IPV6.get((kind, code))
    if len(packet) < length or packet[6] != _ICMPV6 or trouble is None:
        return None
    if _icmpv6_sum(packet[8:40], icmp) % 0xFFFF:
        return None
    quoted = icmp[_HEADER_BYTES:]
    if quoted[0] >> 4 != 6 or quoted[6] != _TCP:
        return None
    source_port, destination_port, sequence = struct.unpack_from("!HHI", quoted, 40)
    return IcmpError(
        trouble=trouble,
        family=socket.AF_INET6,
        reporter=packet[8:24],
        source=(quoted[8:24], source_port),
        destination=(quoted[24:40], destination_port),
        sequence=sequence,
        mtu=mtu if trouble is Trouble.TOO_BIG else 0,
    )


def translate(error: IcmpError, *, router: bytes, quoted: bytes) -> bytes:
    """The whole packet that tells the end of the other leg what `error` says; see `error_packet`."""
    family = socket.AF_INET if quoted[0] >> 4 == 4 else socket.AF_INET6
    return error_packet(
        error.trouble, router=router, quoted=quoted, mtu=error.mtu and translated_mtu(error.mtu, error.family, family)
    )


def fragmentation_needed(*, router: bytes, quoted: bytes, mtu: int) -> bytes:
    """The whole packet that tells an end that its packets may have `mtu` bytes; see `error_packet`."""
    return error_packet(Trouble.TOO_BIG, router=router, quoted=quoted, mtu=mtu)


def error_packet(trouble: Trouble, *, router: bytes, quoted: bytes, mtu: int = 0) -> bytes:
    """An ICMP or ICMPv6 error about the packet `quoted`, as a whole IP packet to its source.

    Args:
        trouble: What to say.
        router: Who says it, 16 bytes: an address of this host, of the family of `quoted`.
        quoted: The packet, with its IP header, as its sender had sent it. It need not be whole: the TCP header will do
            (`segments.segment` makes it); no more is quoted than fits an error.
        mtu: For TOO_BIG: bytes that an IP packet may have.

    Raises:
        ValueError: `router` and `quoted` are of different families.
    """
    ipv4 = quoted[0] >> 4 == 4
    if ipv4 != router.startswith(MAPPED_PREFIX):
        raise ValueError("an ICMP error and the packet that it quotes are of one IP version")
    if ipv4:
        quoted = quoted[: _LONGEST_ERROR_BYTES[socket.AF_INET] - 20 - _HEADER_BYTES]
        icmp = struct.pack("!BBHHH", *_TELL_BY_IPV4[trouble], 0, 0, mtu) + quoted
        checksum = -int.from_bytes(_padded(icmp), "big") % 0xFFFF
        header = ipv4_header(router, MAPPED_PREFIX + quoted[12:16], _ICMP, len(icmp), 64)
    else:
        quoted = quoted[: _LONGEST_ERROR_BYTES[socket.AF_INET6] - 40 - _HEADER_BYTES]
        icmp = struct.pack("!BBHI", *_TELL_BY_IPV6[trouble], 0, mtu) + quoted
        checksum = -_icmpv6_sum(router + quoted[8:24], icmp) % 0xFFFF
        header = ipv6_header(router, quoted[8:24], _ICMPV6, len(icmp), 64)
    return header + icmp[:2] + checksum.to_bytes(2, "big") + icmp[4:]


def translated_mtu(mtu: int, from_family: socket.AddressFamily, to_family: socket.AddressFamily) -> int:
    """What an MTU of one leg means for packets that the other leg's end sends; both count the whole IP packet.

    What an IPv4 or IPv6 packet must always be allowed, and what a header can state, are the limits of the answer. So
    is what IPv6 always allows, whatever an error claims (RFC 8201 section 4).
    """
    if from_family == socket.AF_INET6:
        mtu = max(_SMALLEST_IPV6_MTU, mtu)
    if to_family == socket.AF_INET6:
        return max(_SMALLEST_IPV6_MTU, mtu + _IPV6_EXCESS_BYTES if from_family == socket.AF_INET else mtu)
    if from_family == socket.AF_INET6:
        mtu -= _IPV6_EXCESS_BYTES
    return min(max(_SMALLEST_IPV4_MTU, mtu), _LARGEST_IPV4_MTU)


def _icmpv6_sum(addresses: bytes, icmp: bytes) -> int:
    """A number congruent to the sum over pseudo-header and message (RFC 4443 section 2.3)."""
    return int.from_bytes(addresses + _padded(icmp), "big") + len(icmp) + _ICMPV6


def _padded(data: bytes) -> bytes:
    return data + b"\0" if len(data) & 1 else data
