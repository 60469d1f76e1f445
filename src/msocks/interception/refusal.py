"""Tells a program in connect() that there is no connection, in the kernel's own words: a reset, or an ICMP error.

The program's SYN was held back, and nobody listens at the agent's port. What a router or the destination would have
answered is made here, with the SYN's own numbers, and sent over loopback.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from msocks.errors import ConfigurationError
from msocks.interception.layout import Attempt
from msocks.values.endpoint import Address

_TTL = 64
_RST_ACK = 0x14
_SYN = 0x02
_UNREACHABLE_4, _UNREACHABLE_6 = 3, 1  # ICMP types (RFC 792, RFC 4443)
# Codes of "destination unreachable", by the error that Linux makes of them.
_CODES_4 = {errno.ENETUNREACH: 0, errno.EHOSTUNREACH: 1, errno.ETIMEDOUT: 1, errno.EACCES: 13}
_CODES_6 = {errno.ENETUNREACH: 0, errno.EACCES: 1, errno.EHOSTUNREACH: 3, errno.ETIMEDOUT: 3}
_HERE_4, _HERE_6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
_TCP_CHECKSUM_AT, _ICMP_CHECKSUM_AT = 16, 2


class CannotIntercept(ConfigurationError):
    """The connect hooks cannot be had on this host, or by this user."""


class Refusals:
    """Raw sockets, one for each family, that receive nothing. Needs CAP_NET_RAW, and only until it is made."""

    def __init__(self) -> None:
        """
        Raises:
            CannotIntercept: The privilege is missing.
        """
        self._sockets: dict[int, socket.socket] = {}
        try:
            self._sockets[4] = _sending_socket(socket.AF_INET)
        except OSError as error:
            raise CannotIntercept(
                f"no raw socket can be had: {error.strerror}", remedy="run as root (sudo), or with CAP_NET_RAW"
            ) from None
        with contextlib.suppress(OSError):  # a host without IPv6 has no program that connects by it
            self._sockets[6] = _sending_socket(socket.AF_INET6)

    def refuse(self, attempt: Attempt, port: int, error: int) -> None:
        """End the connect() of `attempt` with `error`, an errno.

        ENETUNREACH, EHOSTUNREACH and, by IPv6, EACCES come through; a time-out, and EACCES by IPv4, as EHOSTUNREACH;
        all else as ECONNREFUSED. `port` is the agent's, to which the attempt was redirected.
        """
        local = attempt.local.address
        assert local is not None
        code = (_CODES_4 if local.version == 4 else _CODES_6).get(error)
        packet = _reset(attempt, port, local) if code is None else _unreachable(attempt, port, local, code)
        with contextlib.suppress(OSError, KeyError):  # the SYN comes again, and so does this
            self._sockets[local.version].sendto(packet, (str(local), 0))

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()


def _sending_socket(family: int) -> socket.socket:
    # Of this protocol nothing comes; what is sent has its own IP header.
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sock.setblocking(False)
    return sock


def _reset(attempt: Attempt, port: int, local: Address) -> bytes:
    """What a closed port answers to the SYN (RFC 9293 section 3.10.7.1)."""
    acknowledged = (attempt.sequence + 1) & 0xFFFFFFFF
    segment = struct.pack("!HHIIBBHHH", port, attempt.local.port, 0, acknowledged, 0x50, _RST_ACK, 0, 0, 0)
    return _packet(local, socket.IPPROTO_TCP, segment, _TCP_CHECKSUM_AT)


def _unreachable(attempt: Attempt, port: int, local: Address, code: int) -> bytes:
    """What a router answers to the SYN; it quotes the IP header and the TCP header of it."""
    syn = struct.pack("!HHIIBBHHH", attempt.local.port, port, attempt.sequence, 0, 0x50, _SYN, 0, 0, 0)
    if isinstance(local, IPv4Address):
        kind, protocol, quoted = _UNREACHABLE_4, socket.IPPROTO_ICMP, _header_4(local, _HERE_4, socket.IPPROTO_TCP, syn)
    else:
        kind, protocol, quoted = (
            _UNREACHABLE_6,
            socket.IPPROTO_ICMPV6,
            _header_6(local, _HERE_6, socket.IPPROTO_TCP, syn),
        )
    return _packet(local, protocol, struct.pack("!BBHI", kind, code, 0, 0) + quoted + syn, _ICMP_CHECKSUM_AT)


def _packet(local: Address, protocol: int, data: bytes, checksum_at: int) -> bytes:
    """From the agent's place to the program's, with its checksum."""
    here = _HERE_4 if isinstance(local, IPv4Address) else _HERE_6
    pseudo = (
        b"" if protocol == socket.IPPROTO_ICMP else here.packed + local.packed + struct.pack("!II", len(data), protocol)
    )
    data = data[:checksum_at] + _checksum(pseudo + data) + data[checksum_at + 2 :]
    if isinstance(local, IPv4Address):
        return _header_4(_HERE_4, local, protocol, data) + data
    return _header_6(_HERE_6, local, protocol, data) + data


def _header_4(source: IPv4Address, target: IPv4Address, protocol: int, data: bytes) -> bytes:
    """RFC 791 section 3.1; the kernel fills in the identification and the checksum."""
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), 0, 0, _TTL, protocol, 0, source.packed, target.packed)


def _header_6(source: IPv6Address, target: IPv6Address, protocol: int, data: bytes) -> bytes:
    """RFC 8200 section 3."""
    return struct.pack("!IHBB16s16s", 0x60000000, len(data), protocol, _TTL, source.packed, target.packed)


def _checksum(data: bytes) -> bytes:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return (~total & 0xFFFF).to_bytes(2, "big")
