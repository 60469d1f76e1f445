"""What the two ends of a leg have agreed on, and whether two legs can be spliced."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from msocks.protocol.leg import DatapathReason
from msocks.transport.kernel import bytes_unread

ESTABLISHED = 1
# A direction that had ended before is not known to the splice. (What is lost altogether is told of soon.)
_WHOLE = (ESTABLISHED, 7)
_TIMESTAMPS = 1
_SACK = 2
_ECN = 8 | 16
_TIMESTAMPS_BYTES = 12
_LENGTH = 256
# struct tcp_info of linux/tcp.h, to tcpi_rcv_wnd (Linux 6.2).
_INFO = struct.Struct("=BBBBBBBB24I")
_AFTER = struct.Struct("=QQQQ")  # pacing rate, its maximum, bytes acked, bytes received
_WINDOWS = struct.Struct("=II")
_AT_RATES = 104
_AT_SEND_WINDOW = 228


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
        bytes_received: In order, since the connection began.
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
        OSError: The kernel is older than Linux 5.4, and does not tell the peer's window.
    """
    while True:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
        if len(raw) < _AT_SEND_WINDOW + 4:
            raise OSError(f"the kernel tells only {len(raw)} bytes of TCP_INFO: the splice needs Linux 5.4 or newer")
        (state, _ca, _retransmits, _probes, _backoff, options, scales, _limited, *words) = _INFO.unpack_from(raw)
        *_, received = _AFTER.unpack_from(raw, _AT_RATES)
        waiting = bytes_unread(sock) if unread else 0
        # Without a byte in the queue now, there was none when the other number was read.
        if not waiting or received == _bytes_received(sock):
            break
    timestamps = bool(options & _TIMESTAMPS)
    (send_window,) = struct.unpack_from("=I", raw, _AT_SEND_WINDOW)
    receive_window = struct.unpack_from("=I", raw, _AT_SEND_WINDOW + 4)[0] if len(raw) >= _AT_SEND_WINDOW + 8 else 65535
    return LegOptions(
        state=state,
        timestamps=timestamps,
        sack=bool(options & _SACK),
        ecn=bool(options & _ECN),
        snd_wscale=scales & 0xF,
        rcv_wscale=scales >> 4,
        largest_segment=words[2] + (_TIMESTAMPS_BYTES if timestamps else 0),
        announced_segment=words[19] + (_TIMESTAMPS_BYTES if timestamps else 0),
        send_window=send_window,
        receive_window=receive_window,
        bytes_received=received,
        bytes_unread=waiting,
        round_trip_ms=max(1, (words[15] + 999) // 1000),
    )


def _bytes_received(sock: socket.socket) -> int:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
    return int(_AFTER.unpack_from(raw, _AT_RATES)[3])


def reconcile(mobile: LegOptions, server: LegOptions, *, tolerant: bool) -> DatapathReason | None:
    """Why two legs cannot be spliced; None where they can.

    SACK and window scaling may differ: blocks are taken out, windows are scaled anew.

    Args:
        mobile: The first mobile leg.
        server: The server leg.
        tolerant: The mobile node is known to take segments without timestamps on a leg that has them: RFC 7323
            section 3.2 lets it drop them, Linux takes them.
    """
    if mobile.state not in _WHOLE or server.state not in _WHOLE:
        return DatapathReason.UNSPECIFIED
    if mobile.ecn or server.ecn:
        return DatapathReason.UNEQUAL_OPTIONS
    if mobile.timestamps != server.timestamps and not (mobile.timestamps and tolerant):
        return DatapathReason.UNEQUAL_OPTIONS
    if server.largest_segment < mobile.announced_segment:
        return DatapathReason.PATH_MTU
    return None
