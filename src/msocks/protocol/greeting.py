"""What the first bytes of a TCP connection to the proxy's port announce."""

from __future__ import annotations

from enum import Enum

from msocks.protocol.socks5_wire import VERSION, Method

TLS_HANDSHAKE = 0x16
"""ContentType handshake (RFC 8446 section 5.1): the first byte of every TLS connection."""

LEG_GREETING = bytes((VERSION, 1, Method.MSOCKS_LEG))
"""A SOCKS5 greeting whose only method is the private one."""

LONGEST_LOOK = len(LEG_GREETING)
"""So many bytes always decide."""


class Announcement(Enum):
    """What a connection will speak."""

    UNDECIDED = "more bytes are needed"
    TLS = "a control channel"
    SOCKS5 = "plain SOCKS5"
    LEG = "an MSOCKS leg"
    UNKNOWN = "nothing that is spoken here"


def classify(first: bytes) -> Announcement:
    """Tell from the first bytes what the connection will speak. Nothing is consumed.

    Once the answer is not UNDECIDED, further bytes do not change it.
    """
    if not first:
        return Announcement.UNDECIDED
    if first[0] == TLS_HANDSHAKE:
        return Announcement.TLS
    if first[0] != VERSION:
        return Announcement.UNKNOWN
    if first[:LONGEST_LOOK] == LEG_GREETING:
        return Announcement.LEG
    return Announcement.UNDECIDED if LEG_GREETING.startswith(first) else Announcement.SOCKS5
