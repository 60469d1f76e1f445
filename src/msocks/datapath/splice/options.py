"""What the two ends of a leg agreed on in their SYNs, and whether two legs can be joined."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TypeAlias

from msocks.datapath.splice.refusal import SpliceRefused
from msocks.protocol.leg import DatapathReason

ESTABLISHED = 1  # TCP_ESTABLISHED, linux/tcp_states.h
TIMESTAMPS_BYTES = 12  # of a header's options, padding included

# struct tcp_info of linux/uapi/linux/tcp.h; up to tcpi_rcv_wnd, which Linux 6.2 added.
_TCP_INFO_BYTES = 236
_HEAD = struct.Struct("5B2B")  # state .. options, then both window scales in one byte
_MSS, _ADVMSS = 16, 84
_BYTES = 120
_WINDOWS = 228
_TIMESTAMPS, _SACK, _WINDOW_SCALE, _ECN = 1, 2, 4, 8  # TCPI_OPT_*
# tcpi_snd_wscale and tcpi_rcv_wscale are bit fields, which C lays out by byte order.
_SEND_SCALE_IS_LOW = struct.pack("=H", 1)[0] == 1

SocketName: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""As `getsockname` and `getpeername` give it for IPv4 and IPv6."""


@dataclass(frozen=True, slots=True)
class LegOptions:
    """A TCP connection of this host, as TCP_INFO shows it.

    Attributes:
        state: As linux/tcp_states.h numbers it.
        timestamps: Both ends send timestamps (RFC 7323).
        sack: Both ends understand SACK (RFC 2018).
        ecn: ECN was agreed on (RFC 3168).
        snd_wscale: Shift of the windows that the peer offers, 0 to 14; None where windows are not scaled.
        rcv_wscale: Shift of the windows that this host offers; 0 where windows are not scaled.
        snd_mss: Bytes of payload that a full segment toward the peer may have now, by its MSS and the path's MTU.
        advmss: Bytes of payload that a full segment of the peer may have, by the MSS that this host announced. In
            both, the timestamps (12 bytes) are deducted where there are any.
        bytes_acked: What the peer has ACKed since the beginning, SYN not counted, FIN counted.
        bytes_received: What the peer has sent in order since the beginning, FIN counted.
        snd_wnd: Bytes: the window that the peer offered last.
        rcv_wnd: Bytes: the window that this host offered last.
    """

    state: int
    timestamps: bool
    sack: bool
    ecn: bool
    snd_wscale: int | None
    rcv_wscale: int
    snd_mss: int
    advmss: int
    bytes_acked: int
    bytes_received: int
    snd_wnd: int
    rcv_wnd: int

    @classmethod
    def parse(cls, raw: bytes) -> LegOptions:
        """From the bytes of TCP_INFO.

        Raises:
            SpliceRefused: They are too few: the kernel is older than Linux 6.2.
        """
        if len(raw) < _TCP_INFO_BYTES:
            raise SpliceRefused(
                f"this kernel tells {len(raw)} bytes of a TCP connection's state, the splice needs {_TCP_INFO_BYTES}",
                remedy="run Linux 6.2 or newer, or run the proxy with the relay",
                reason=DatapathReason.NO_KERNEL_SUPPORT,
            )
        state, _, _, _, _, options, scales = _HEAD.unpack_from(raw)
        send_scale, receive_scale = scales & 15, scales >> 4
        if not _SEND_SCALE_IS_LOW:
            send_scale, receive_scale = receive_scale, send_scale
        scaled = options & _WINDOW_SCALE
        bytes_acked, bytes_received = struct.unpack_from("=QQ", raw, _BYTES)
        snd_wnd, rcv_wnd = struct.unpack_from("=II", raw, _WINDOWS)
        return cls(
            state=state,
            timestamps=bool(options & _TIMESTAMPS),
            sack=bool(options & _SACK),
            ecn=bool(options & _ECN),
            snd_wscale=send_scale if scaled else None,
            rcv_wscale=receive_scale if scaled else 0,
            snd_mss=int.from_bytes(raw[_MSS : _MSS + 4], "little" if _SEND_SCALE_IS_LOW else "big"),
            advmss=int.from_bytes(raw[_ADVMSS : _ADVMSS + 4], "little" if _SEND_SCALE_IS_LOW else "big"),
            bytes_acked=bytes_acked,
            bytes_received=bytes_received,
            snd_wnd=snd_wnd,
            rcv_wnd=rcv_wnd,
        )


def leg_options(sock: socket.socket) -> LegOptions:
    """Ask the kernel. Raises SpliceRefused where it is too old, OSError on a socket that is no TCP socket."""
    return LegOptions.parse(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES))


def reconcile(mobile: LegOptions, server: LegOptions) -> DatapathReason | None:
    """Why the two legs cannot be spliced; None where they can.

    - SACK and window scales may differ: the splice strips SACK blocks that the other end does not understand, and
      scales every window anew.
    - Timestamps that only the mobile leg has are replaced by NOPs. Those that only the server leg has cannot be made
      up (a server drops segments without them, RFC 7323 section 3.2): UNEQUAL_OPTIONS.
    - ECN is between neighbours of one connection, its two ends would not be the ones that agreed: UNEQUAL_OPTIONS.
    - The mobile may send segments as large as the MSS that the proxy announced to it. Where the server leg takes only
      smaller ones, each of them would be lost and answered with an ICMP error: PATH_MTU. The opposite direction is
      made to fit by `prepare_server_leg`.
    - A leg that is not established (closed meanwhile, or half-closed: a FIN came or went before the splice could see
      it) has no reason of its own among those that the protocol knows: UNSPECIFIED.
    """
    if mobile.state != ESTABLISHED or server.state != ESTABLISHED:
        return DatapathReason.UNSPECIFIED
    if mobile.ecn or server.ecn or (server.timestamps and not mobile.timestamps):
        return DatapathReason.UNEQUAL_OPTIONS
    if _with_timestamps(mobile.advmss, mobile) > _with_timestamps(server.snd_mss, server):
        return DatapathReason.PATH_MTU
    return None


def _with_timestamps(payload: int, leg: LegOptions) -> int:
    """Bytes behind the TCP header proper. NOPs in place of timestamps leave a segment as long as it was."""
    return payload + TIMESTAMPS_BYTES if leg.timestamps else payload


def is_local(own: SocketName, peer: SocketName) -> bool:
    """Whether `peer`, the other end of a server leg, is on this host: it has the address `own`, or a loopback one.

    `own` is this end of the server leg, or of the mobile leg: a host connects to itself from the address it connects
    to, unless the socket was bound to another one. A spliced packet leaves through an interface, so that a server
    behind lo cannot be reached.
    """
    address = _without_prefix(peer[0])
    return address == _without_prefix(own[0]) or address == "::1" or address.startswith("127.")


def _without_prefix(address: str) -> str:
    return address.removeprefix("::ffff:") if "." in address else address
