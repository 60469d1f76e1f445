"""Tells a program in connect() that there is no connection, in the kernel's own words: a reset, or an ICMP error.

The program's SYN was held back, and nobody listens at the agent's port. What a router or the destination would have
answered is made here, with the SYN's own numbers, and sent over loopback.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from msocks.errors import MsocksError
from msocks.interception.layout import Attempt

_RST_ACK = 0x14
_UNREACHABLE_4, _UNREACHABLE_6 = 3, 1  # ICMP types (RFC 792, RFC 4443)
# Codes of "destination unreachable", by the error that Linux makes of them.
_CODES_4 = {errno.ENETUNREACH: 0, errno.EHOSTUNREACH: 1, errno.ETIMEDOUT: 1, errno.EACCES: 13}
_CODES_6 = {errno.ENETUNREACH: 0, errno.EACCES: 1, errno.EHOSTUNREACH: 3, errno.ETIMEDOUT: 3}
_IPV6_CHECKSUM = 7
_TCP_CHECKSUM_AT = 16


class CannotIntercept(MsocksError):
    """The connect hooks cannot be had on this host, or by this user."""


class Refusals:
    """Raw sockets on loopback. Needs CAP_NET_RAW, and only until it is made."""

    def __init__(self) -> None:
        """
        Raises:
            CannotIntercept: The privilege is missing.
        """
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        try:
            for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_ICMP):
                self._open(socket.AF_INET, protocol, "127.0.0.1")
        except OSError as error:
            self.close()
            raise CannotIntercept(
                f"no raw socket can be had: {error.strerror}", remedy="run as root (sudo), or with CAP_NET_RAW"
            ) from None
        try:
            for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_ICMPV6):
                self._open(socket.AF_INET6, protocol, "::1")
            tcp = self._sockets[socket.AF_INET6, socket.IPPROTO_TCP]
            tcp.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _TCP_CHECKSUM_AT)
        except OSError:
            pass  # a host without IPv6 has no program that connects by it

    def _open(self, family: int, protocol: int, address: str) -> None:
        sock = socket.socket(family, socket.SOCK_RAW, protocol)
        self._sockets[family, protocol] = sock
        sock.setblocking(False)
        sock.bind((address, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # all of loopback's TCP comes here, and is not read

    def refuse(self, attempt: Attempt, port: int, error: int) -> None:
        """End the connect() of `attempt` with `error`, an errno.

        ENETUNREACH, EHOSTUNREACH and, by IPv6, EACCES come through; a time-out as EHOSTUNREACH; all else as
        ECONNREFUSED. `port` is the agent's, to which the attempt was redirected.
        """
        local = attempt.local.host
        is_ipv6 = isinstance(local, IPv6Address)
        code = (_CODES_6 if is_ipv6 else _CODES_4).get(error)
        ports = struct.pack("!HH", attempt.local.port, port)
        if code is None:
            family, protocol = (socket.AF_INET6 if is_ipv6 else socket.AF_INET), socket.IPPROTO_TCP
            packet = _reset(attempt, port)
        elif isinstance(local, IPv4Address):
            family, protocol = socket.AF_INET, socket.IPPROTO_ICMP
            quoted = ports + attempt.sequence.to_bytes(4, "big")
            header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 60, 0, 0, 64, socket.IPPROTO_TCP, 0, local.packed, _HERE_4)
            packet = struct.pack("!BBHI", _UNREACHABLE_4, code, 0, 0) + header + quoted
            packet = packet[:2] + _checksum(packet) + packet[4:]
        else:
            assert isinstance(local, IPv6Address)
            family, protocol = socket.AF_INET6, socket.IPPROTO_ICMPV6
            # The kernel passes an error on only where all of the TCP header is quoted.
            quoted = ports + attempt.sequence.to_bytes(4, "big") + struct.pack("!IBBHHH", 0, 0x50, 0x02, 0, 0, 0)
            header = struct.pack("!IHBB16s16s", 0x60000000, 20, socket.IPPROTO_TCP, 64, local.packed, _HERE_6)
            packet = struct.pack("!BBHI", _UNREACHABLE_6, code, 0, 0) + header + quoted  # the kernel sums it
        try:
            self._sockets[family, protocol].sendto(packet, (str(local), 0))
        except (OSError, KeyError):
            pass  # the SYN comes again, and so does this

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()


_HERE_4 = IPv4Address("127.0.0.1").packed
_HERE_6 = IPv6Address("::1").packed


def _reset(attempt: Attempt, port: int) -> bytes:
    """What a closed port answers to the SYN (RFC 9293 section 3.10.7.1)."""
    acknowledged = (attempt.sequence + 1) & 0xFFFFFFFF
    segment = struct.pack("!HHIIBBHHH", port, attempt.local.port, 0, acknowledged, 0x50, _RST_ACK, 0, 0, 0)
    local = attempt.local.host
    if not isinstance(local, IPv4Address):
        return segment  # the kernel sums it
    pseudo = _HERE_4 + local.packed + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment))
    return segment[:_TCP_CHECKSUM_AT] + _checksum(pseudo + segment) + segment[_TCP_CHECKSUM_AT + 2 :]


def _checksum(data: bytes) -> bytes:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return (~total & 0xFFFF).to_bytes(2, "big")
