"""Sends packets that were made here, not by the kernel's TCP: raw sockets that take whole IP packets."""

from __future__ import annotations

import errno
import socket
from collections import Counter

from msocks.datapath.splice.refusal import SpliceRefused
from msocks.protocol.leg import DatapathReason

_IP_PKTINFO = 8  # linux/in.h
_NO_INTERFACE = bytes(4)
_NO_ADDRESS = bytes(4)


class RawOutput:
    """One raw socket for IPv4 and one for IPv6, in the network namespace of the thread that makes it.

    Every packet carries the mark: the firewall of the splice lets it out. It is routed as a packet of its source
    address, so that rules by source address choose the route that they choose for the connection the packet speaks for.

    Attributes:
        refused: How many packets the kernel did not take, by errno.
    """

    def __init__(self, mark: int) -> None:
        """Open the sockets; without the one for IPv6 where this kernel has no IPv6.

        Raises:
            SpliceRefused: CAP_NET_RAW is missing.
        """
        self.refused: Counter[int] = Counter()
        self._ipv4 = _raw_socket(socket.AF_INET, mark)
        self._ipv6: socket.socket | None = None
        try:
            self._ipv6 = _raw_socket(socket.AF_INET6, mark)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                self._ipv4.close()
                raise

    def send(self, packet: bytes) -> bool:
        """Send a whole IPv4 or IPv6 packet. Never blocks, never raises an OSError.

        False where the kernel did not take it: its queue is full, there is no route, the packet is larger than the
        interface takes, or (IPv6 only) the source address is not this host's any more. It is counted in `refused`, and
        is for the caller like a packet that the network has lost.
        """
        try:
            if packet[0] >> 4 == 4:
                route = (socket.IPPROTO_IP, _IP_PKTINFO, _NO_INTERFACE + packet[12:16] + _NO_ADDRESS)
                self._ipv4.sendmsg((packet,), (route,), 0, (socket.inet_ntoa(packet[16:20]), 0))
            elif self._ipv6 is None:
                self.refused[errno.EAFNOSUPPORT] += 1
                return False
            else:
                route = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packet[8:24] + _NO_INTERFACE)
                self._ipv6.sendmsg((packet,), (route,), 0, (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0))
        except OSError as error:
            self.refused[error.errno or 0] += 1
            return False
        return True

    def close(self) -> None:
        """Close the sockets."""
        self._ipv4.close()
        if self._ipv6 is not None:
            self._ipv6.close()


def _raw_socket(family: socket.AddressFamily, mark: int) -> socket.socket:
    try:
        # IPPROTO_RAW means that whole packets are given, headers included, and that none is ever received: raw(7).
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    except PermissionError as error:
        raise _no_privilege() from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except PermissionError as error:
        sock.close()
        raise _no_privilege() from error
    except BaseException:
        sock.close()
        raise
    return sock


def _no_privilege() -> SpliceRefused:
    return SpliceRefused(
        "the splice may not open a raw socket with a mark",
        remedy="give the proxy CAP_NET_RAW and CAP_NET_ADMIN (systemd: AmbientCapabilities=), or run it with the relay",
        reason=DatapathReason.NO_PRIVILEGE,
    )
