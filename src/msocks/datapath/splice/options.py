"""What the two ends of a leg have agreed on, and whether two legs can be spliced."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from msocks.datapath.splice.refusal import SpliceRefused
from msocks.datapath.splice.segments import MAPPED_PREFIX
from msocks.protocol.leg import DatapathReason
from msocks.transport.kernel import bytes_unread

ESTABLISHED = 1
# A direction that had ended before is not known to the splice. (What is lost altogether is told of soon.)
_WHOLE = (ESTABLISHED, 7)
_PEER_HAS_ENDED = (8, 9, 11)  # TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING
_TIMESTAMPS = 1
_SACK = 2
_ECN = 8 | 16
_TIMESTAMPS_BYTES = 12
# Of struct tcp_info of linux/tcp.h:
# state, options, both scales, snd_mss, rtt, advmss, bytes_received, snd_wnd, rcv_wnd.
_INFO = struct.Struct("=B4xBB9xI48xI12xI40xQ92xII")
_RECEIVED = struct.Struct("=128xQ")
_BEFORE_RECEIVE_WINDOW = 232
_WIDEST_UNSCALED = struct.pack("=I", 65535)  # before Linux 6.2 rcv_wnd is not told

_LOOPBACK_IPV4 = MAPPED_PREFIX + b"\x7f"
_LOOPBACK_IPV6 = bytes(15) + b"\1"
_LINK_LOCAL_IPV4 = MAPPED_PREFIX + b"\xa9\xfe"


@dataclass(slots=True)
class LegOptions:
    """One established leg, from this host's kernel; sizes in bytes.

    Attributes:
        state: As linux/tcp_states.h numbers it.
        timestamps: RFC 7323 section 3.
        sack: RFC 2018.
        ecn: RFC 3168.
        snd_wscale: Shift of the windows that the peer offers; 0 without window scaling.
        rcv_wscale: Shift of the windows that this host offers.
        largest_segment: What the peer takes, TCP options included.
        announced_segment: What this host takes, as it has told the peer; likewise.
        send_window: The window that the peer offers.
        receive_window: The window that this host offers.
        bytes_received: In order, since the connection began; a FIN is not counted.
        bytes_unread: Of these, what still waits in the socket.
        round_trip_ms: Smoothed; at least 1.
    """

    state: int
    timestamps: bool
    sack: bool
    ecn: bool
    snd_wscale: int
    rcv_wscale: int
    largest_segment: int
    announced_segment: int
    send_window: int
    receive_window: int
    bytes_received: int
    bytes_unread: int
    round_trip_ms: int


def read_options(sock: socket.socket, *, unread: bool = True) -> LegOptions:
    """Ask the kernel about a TCP socket; without `unread`, `bytes_unread` is 0 whatever waits.

    Raises:
        SpliceRefused: The kernel is older than Linux 5.4, and does not tell the peer's window.
        OSError: It is no TCP socket, or closed.
    """
    raw = _ask(sock)
    waiting = bytes_unread(sock) if unread else 0
    # Without a byte in the queue now, there was none when the other number was read.
    while waiting:
        before, raw = _RECEIVED.unpack_from(raw), _ask(sock)
        if _RECEIVED.unpack_from(raw) == before:
            break
        waiting = bytes_unread(sock)
    state, options, scales, snd_mss, rtt_us, advmss, received, send_window, receive_window = _INFO.unpack(raw)
    timestamps = bool(options & _TIMESTAMPS)
    return LegOptions(
        state=state,
        timestamps=timestamps,
        sack=bool(options & _SACK),
        ecn=bool(options & _ECN),
        snd_wscale=scales & 0xF,
        rcv_wscale=scales >> 4,
        largest_segment=snd_mss + (_TIMESTAMPS_BYTES if timestamps else 0),
        announced_segment=advmss + (_TIMESTAMPS_BYTES if timestamps else 0),
        send_window=send_window,
        receive_window=receive_window,
        # The kernel counts a FIN here, and not among the unread.
        bytes_received=received - (state in _PEER_HAS_ENDED),
        bytes_unread=waiting,
        round_trip_ms=max(1, (rtt_us + 999) // 1000),
    )


def _ask(sock: socket.socket) -> bytes:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    if len(raw) == _INFO.size:
        return raw
    if len(raw) < _BEFORE_RECEIVE_WINDOW:
        raise SpliceRefused(
            f"this kernel tells only {len(raw)} bytes of TCP_INFO, without the peer's window",
            remedy="run Linux 5.4 or newer, or run the proxy with the relay",
            reason=DatapathReason.NO_KERNEL_SUPPORT,
        )
    return raw[:_BEFORE_RECEIVE_WINDOW] + _WIDEST_UNSCALED


def reconcile(
    mobile: LegOptions, server: LegOptions, *, tolerant: bool, believed: int | None = None
) -> DatapathReason | None:
    """Why two legs cannot be spliced; None where they can.

    SACK and window scaling may differ: blocks are taken out, windows are scaled anew.

    Args:
        mobile: The first mobile leg.
        server: The server leg.
        tolerant: The mobile node is known to take segments without timestamps on a leg that has them: RFC 7323
            section 3.2 lets it drop them, Linux takes them.
        believed: A largest segment, in bytes, that the server may announce only because this host has told it of a
            narrow path to a mobile node.
    """
    if mobile.state not in _WHOLE or server.state not in _WHOLE:
        return DatapathReason.UNSPECIFIED
    if mobile.ecn or server.ecn:
        return DatapathReason.UNEQUAL_OPTIONS
    if mobile.timestamps != server.timestamps and not (mobile.timestamps and tolerant):
        return DatapathReason.UNEQUAL_OPTIONS
    narrow = server.largest_segment < mobile.announced_segment
    if narrow and (believed is None or server.largest_segment < believed):
        return DatapathReason.PATH_MTU
    return None


def is_local(sock: socket.socket) -> bool:
    """Whether a connected socket's peer cannot be spliced because of where it is; see `stays_near`. Raises OSError."""
    family = sock.family
    return stays_near(_packed(family, sock.getsockname()[0]), _packed(family, sock.getpeername()[0]))


def stays_near(local: bytes, remote: bytes) -> bool:
    """Whether packets between two addresses (16 bytes) pass no interface that can be hooked, or name none.

    They stay on this host where the addresses are the same, or one is a loopback address. A link-local address means
    nothing without an interface, which neither a flow's key nor a crafted packet has.
    """
    return local == remote or _is_near(local) or _is_near(remote)


def _is_near(address: bytes) -> bool:
    return (
        address.startswith((_LOOPBACK_IPV4, _LINK_LOCAL_IPV4))
        or address == _LOOPBACK_IPV6
        or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)
    )


def _packed(family: int, address: str) -> bytes:
    if family == socket.AF_INET:
        return MAPPED_PREFIX + socket.inet_aton(address)
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
