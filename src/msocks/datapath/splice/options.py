"""What the two ends of a leg have agreed on, and whether two legs can be spliced."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from msocks.datapath.splice.libbpf import ffi, lib
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.datapath.splice.segments import MAPPED_PREFIX
from msocks.protocol.leg import DatapathReason
from msocks.transport.kernel import bytes_unacknowledged

ESTABLISHED = 1
# A direction that had ended before is not known to the splice. (What is lost altogether is told of soon.)
_WHOLE = (ESTABLISHED, 7)
_PEER_HAS_ENDED = (8, 9, 11)  # TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING
_TIMESTAMPS = 1
_SACK = 2
_ECN = 8 | 16
_TIMESTAMPS_BYTES = 12
# struct leg_look of bindings/legs.c: of struct tcp_info of linux/tcp.h state, options, both scales, snd_mss, unacked,
# rtt, advmss, bytes_acked, bytes_received, notsent_bytes, snd_wnd, rcv_wnd; then how much of it the kernel has told,
# bytes unread, a struct flow_key.
_LOOK = struct.Struct("=B4xBB9xI4xI40xI12xI32xQQ8xI80xII12xII36s4x")
_ACKNOWLEDGED = struct.Struct("=120xQ")
_BEFORE_RECEIVE_WINDOW, _WITH_RECEIVE_WINDOW = 232, 236  # the latter from Linux 6.2 on
_WIDEST_UNSCALED = 65535
_look = bytearray(_LOOK.size)
_look_pointer = ffi.from_buffer(_look)

_LOOPBACK_IPV6 = bytes(15) + b"\1"
_NEAR_IPV4 = (MAPPED_PREFIX + b"\x7f", MAPPED_PREFIX + b"\xa9\xfe")  # loopback, link-local


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
        bytes_said: That this host has written since the connection began; a FIN is not counted.
        bytes_unheard: Of these, what the peer has not acknowledged.
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
    bytes_said: int
    bytes_unheard: int
    round_trip_ms: int


def read_options(sock: socket.socket, *, unread: bool = True) -> LegOptions:
    """Ask the kernel about a TCP socket; without `unread`, `bytes_unread` is 0 whatever waits.

    Raises:
        SpliceRefused: The kernel is far older than Linux 6.1, and does not tell the peer's window.
        OSError: It is no TCP socket, or closed.
    """
    return _look_at(sock, unread, False)[0]


def read_leg(sock: socket.socket, *, unread: bool = True) -> tuple[LegOptions, bytes]:
    """The same, and who the two ends are: a struct flow_key of ``bpf/layout.h``, of what arrives.

    Raises:
        SpliceRefused: As `read_options`.
        OSError: So too, and where the connection is lost.
    """
    return _look_at(sock, unread, True)


def _look_at(sock: socket.socket, unread: bool, ends: bool) -> tuple[LegOptions, bytes]:
    result = lib.msocks_look(sock.fileno(), unread, ends, _look_pointer)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    found, key = interpret(_look)
    if found.bytes_unheard:
        heard, found.bytes_unheard = _heard_and_unheard(sock)
        found.bytes_said = heard + found.bytes_unheard
    return found, key


def _heard_and_unheard(sock: socket.socket) -> tuple[int, int]:
    """Bytes that the peer has acknowledged, and those that it has not, at one moment."""
    while True:
        (before,) = _acknowledged(sock)
        unheard = bytes_unacknowledged(sock)
        if _acknowledged(sock) == (before,):
            return before, unheard


def _acknowledged(sock: socket.socket) -> tuple[int]:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
    (acknowledged,) = _ACKNOWLEDGED.unpack(info)
    return (acknowledged,)


def interpret(look: bytes | bytearray) -> tuple[LegOptions, bytes]:
    """What the kernel has told, as a struct leg_look of ``bindings/legs.c``; `bytes_unheard` is not in it exactly.

    Raises SpliceRefused as `read_options`.
    """
    (
        state, options, scales, snd_mss, unacked, rtt_us, advmss, heard, received, unsent, send_window, receive_window,
        told, waiting, ends,
    ) = _LOOK.unpack(look)  # fmt: skip
    if told < _WITH_RECEIVE_WINDOW:
        if told < _BEFORE_RECEIVE_WINDOW:
            raise SpliceRefused(
                f"this kernel tells only {told} bytes of TCP_INFO, without the peer's window",
                remedy="run Linux 6.1 or newer, or run the proxy with the relay",
                reason=DatapathReason.NO_KERNEL_SUPPORT,
            )
        receive_window = _WIDEST_UNSCALED
    timestamps = bool(options & _TIMESTAMPS)
    beside = _TIMESTAMPS_BYTES if timestamps else 0
    found = LegOptions(
        state,
        timestamps,
        bool(options & _SACK),
        bool(options & _ECN),
        scales & 0xF,
        scales >> 4,
        snd_mss + beside,
        advmss + beside,
        send_window,
        receive_window,
        # The kernel counts a FIN here, and not among the unread.
        received - (state in _PEER_HAS_ENDED),
        waiting,
        heard,
        unacked + unsent,  # segments and bytes: whether there are any
        (rtt_us + 999) // 1000 or 1,
    )
    return found, ends


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
        # Linux sends no segment of more than half the widest window that it has seen. The mobile's TCP has seen this
        # host's, and would wait for more than the server ever offers.
        bound = server.largest_segment - (_TIMESTAMPS_BYTES if server.timestamps else 0)
        return DatapathReason.TINY_WINDOW if bound == server.send_window // 2 else DatapathReason.PATH_MTU
    return None


def stays_near(local: bytes, remote: bytes) -> bool:
    """Whether packets between two addresses (16 bytes) pass no interface that can be hooked, or name none.

    They stay on this host where the addresses are the same, or one is a loopback address. A link-local address means
    nothing without an interface, which neither a flow's key nor a crafted packet has.
    """
    return local == remote or _is_near(local) or _is_near(remote)


def _is_near(address: bytes) -> bool:
    return (
        address.startswith(_NEAR_IPV4)
        or address == _LOOPBACK_IPV6
        or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)
    )
