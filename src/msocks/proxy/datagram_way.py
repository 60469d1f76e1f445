"""By which way a datagram came to one of the proxy's ports, and how to go back by it."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any

from msocks.proxy.listener import IP_PKTINFO
from msocks.transport.arrival_stamp import STAMP_BYTES
from msocks.values.endpoint import Endpoint

ANCILLARY_BYTES = socket.CMSG_SPACE(20) + STAMP_BYTES
"""Room for struct in6_pktinfo, the larger one, and for when it came."""

# struct in_pktinfo: interface, address to answer from, address in the header
_IN_PKTINFO = struct.Struct("=i4s4s")
# struct in6_pktinfo: address, interface
_IN6_PKTINFO = struct.Struct("=16si")


@dataclass(frozen=True, slots=True)
class DatagramWay:
    """See the module.

    Attributes:
        sock: The port's socket, which tells the local address of each datagram.
        sockaddr: Where the datagram came from.
        ancillary: What the socket told with it.
    """

    sock: socket.socket
    sockaddr: tuple[Any, ...]
    ancillary: list[tuple[int, int, bytes]]

    @property
    def source(self) -> Endpoint:
        """Where the datagram came from."""
        return Endpoint.from_sockaddr(self.sockaddr)

    def send(self, datagram: bytes) -> bool:
        """Send a datagram back, from the address to which the other one came; False where it could not be sent."""
        try:
            self.sock.sendmsg([datagram], _from_there(self.ancillary), 0, self.sockaddr)
        except OSError:
            return False
        return True


def _from_there(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """The control message that makes an answer leave from the address to which the datagram came."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            _, local, _ = _IN_PKTINFO.unpack(data)
            return [(level, kind, _IN_PKTINFO.pack(0, local, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            local, interface = _IN6_PKTINFO.unpack(data)
            # A link-local address means nothing without its interface; any other is routed.
            scope = interface if local[0] == 0xFE and local[1] & 0xC0 == 0x80 else 0
            return [(level, kind, _IN6_PKTINFO.pack(local, scope))]
    return []
