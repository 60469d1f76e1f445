"""Whole IP packets with one TCP segment in them (RFC 9293 section 3.1), made from numbers.

Addresses are 16 bytes throughout the splice, IPv4 ones as ``::ffff:a.b.c.d`` (RFC 4291 section 2.5.5.2).

Checksums (RFC 1071) are a remainder: a sum of 16-bit words with end-around carry is congruent to the number that
the words spell, modulo 65535, and Python divides long numbers fast. For the same reason a mapped address may stand
in the pseudo-header in place of the IPv4 address: ``ffff`` adds nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TypeAlias

FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10

MAPPED_PREFIX = bytes(10) + b"\xff\xff"
LONGEST_OPTIONS_BYTES = 40
LONGEST_PACKET_BYTES = 0xFFFF  # of an IPv4 packet with its header, of an IPv6 packet without

_TCP = 6
_TCP_HEADER_BYTES = 20
_IPV4_HEADER = struct.Struct("!BBHHHBBH4s4s")
_IPV6_HEADER = struct.Struct("!IHBB16s16s")
_TCP_HEADER = struct.Struct("!HHIIBBHHH")
_DONT_FRAGMENT = 0x4000

End: TypeAlias = tuple[bytes, int]
"""An address (16 bytes) and a port."""


def segment(
    *,
    source: End,
    destination: End,
    sequence: int,
    acknowledgment: int,
    flags: int,
    window: int,
    options: bytes = b"",
    payload: bytes = b"",
    hop_limit: int = 64,
) -> bytes:
    """The packet: IPv4 where both ends are IPv4, with "don't fragment" set; otherwise IPv6.

    Args:
        source: Who it claims to be from.
        destination: Where it goes.
        sequence: 0 to 2^32-1.
        acknowledgment: 0 to 2^32-1.
        flags: The low eight bits of the flags, see the constants of this module.
        window: 0 to 65535, as it stands in the header: scaled already.
        options: Padded to a multiple of four bytes, at most 40.
        payload: What follows the TCP header.
        hop_limit: The TTL in IPv4.

    Raises:
        ValueError: The options have no length that a header can state, or the packet is too long for IP.
        struct.error: A number is outside its range.
    """
    source_address, source_port = source
    destination_address, destination_port = destination
    header_bytes = _TCP_HEADER_BYTES + len(options)
    if header_bytes & 3 or header_bytes > _TCP_HEADER_BYTES + LONGEST_OPTIONS_BYTES:
        raise ValueError(f"{len(options)} bytes of TCP options: a multiple of 4 up to 40 is possible")
    header = (source_port, destination_port, sequence, acknowledgment, header_bytes << 2, flags, window)
    tcp = _TCP_HEADER.pack(*header, 0, 0) + options + payload
    length = len(tcp)
    # The pseudo-header: both addresses, the protocol, the length (RFC 9293 section 3.1, RFC 8200 section 8.1).
    summed = source_address + destination_address + tcp
    if length & 1:
        summed += b"\0"
    tcp_checksum = -(int.from_bytes(summed, "big") + _TCP + length) % 0xFFFF
    tcp = _TCP_HEADER.pack(*header, tcp_checksum, 0) + tcp[_TCP_HEADER_BYTES:]
    if source_address.startswith(MAPPED_PREFIX) and destination_address.startswith(MAPPED_PREFIX):
        return ipv4_header(source_address, destination_address, _TCP, length, hop_limit) + tcp
    return ipv6_header(source_address, destination_address, _TCP, length, hop_limit) + tcp


def ipv4_header(source: bytes, destination: bytes, protocol: int, payload_bytes: int, hop_limit: int) -> bytes:
    """An IPv4 header (RFC 791) of a packet that may not be fragmented, from mapped addresses. Raises ValueError.

    The identification is 0: a packet that is never fragmented may have any (RFC 6864 section 4.1). Linux fills it in.
    """
    length = 20 + payload_bytes
    if length > LONGEST_PACKET_BYTES:
        raise ValueError(f"{length} bytes do not fit into an IPv4 packet")
    addresses = source[12:], destination[12:]
    header = _IPV4_HEADER.pack(0x45, 0, length, 0, _DONT_FRAGMENT, hop_limit, protocol, 0, *addresses)
    checksum = -int.from_bytes(header, "big") % 0xFFFF
    return header[:10] + checksum.to_bytes(2, "big") + header[12:]


def ipv6_header(source: bytes, destination: bytes, protocol: int, payload_bytes: int, hop_limit: int) -> bytes:
    """An IPv6 header (RFC 8200 section 3) without a flow label. Raises ValueError."""
    if payload_bytes > LONGEST_PACKET_BYTES:
        raise ValueError(f"{payload_bytes} bytes do not fit into an IPv6 packet")
    return _IPV6_HEADER.pack(6 << 28, payload_bytes, protocol, hop_limit, source, destination)


def timestamps(value: int, echo: int) -> bytes:
    """The timestamps option (RFC 7323 section 3), 12 bytes with the padding that Linux puts before it.

    Linux compares the first four of them at once (its fast path), so they must be NOP, NOP, 8, 10.
    """
    return struct.pack("!BBBBII", 1, 1, 8, 10, value, echo)


def sack_blocks(blocks: Iterable[tuple[int, int]]) -> bytes:
    """The SACK option (RFC 2018 section 3), padded: left edge and right edge (the number behind the last byte).

    At most four blocks fit into a header, three beside timestamps; without any, the option is left out.
    Raises ValueError.
    """
    edges = [edge for block in blocks for edge in block]
    if len(edges) > 8:
        raise ValueError(f"{len(edges) // 2} SACK blocks: at most 4 fit")
    if not edges:
        return b""
    return struct.pack(f"!BBBB{len(edges)}I", 1, 1, 5, 2 + 4 * len(edges), *edges)
