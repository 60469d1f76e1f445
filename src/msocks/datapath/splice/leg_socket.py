"""Ordinary sockets in the middle of spliced legs, rebuilt from the numbers in the session's entry."""

from __future__ import annotations

import socket
import time

from msocks.datapath.splice.layout import MARK_OF_DAEMON, SERVER, Leg, LegFlag, Session
from msocks.datapath.splice.rebuild import rebuild
from msocks.datapath.splice.speech import ends

_WORD = 0xFFFFFFFF
_RECEIVE_WINDOW = 1 << 16
_MSS = 1220  # what the other end has announced is not kept; this much passes everywhere (RFC 8200 section 5)
_NANOSECONDS_A_MS = 1_000_000


def leg_socket(leg: Leg, said: int, heard: int, send_window: int, receive_window: int) -> socket.socket:
    """A socket for one leg, whose flow is gone, or is about to go: what comes then reaches the kernel.

    Args:
        leg: Of the entry; nothing is written to it.
        said: Offset in the stream that leaves on it, of what is to be said next; a FIN that was ACKed counts.
        heard: Offset in the stream that arrives on it, of what is expected next.
        send_window: Bytes that the other end takes from `said` on.
        receive_window: Bytes that it was told it may send from `heard` on.

    Raises:
        SpliceRefused: CAP_NET_ADMIN is missing.
        OSError: There is no such socket to be had.
    """
    clock = None
    if leg.flags & LegFlag.TIMESTAMPS:
        passed = max(0, time.monotonic_ns() - leg.ts_out_at) // _NANOSECONDS_A_MS
        clock = leg.ts_out + passed & _WORD
    return rebuild(
        *ends(leg),
        snd_nxt=leg.out_base + said & _WORD,
        rcv_nxt=leg.in_base + heard & _WORD,
        snd_wnd=send_window,
        rcv_wnd=receive_window,
        snd_wscale=leg.in_scale,
        rcv_wscale=leg.out_scale,
        mss=_MSS,
        sack=bool(leg.flags & LegFlag.SACK),
        tsval=clock,
        mark=MARK_OF_DAEMON,
    )


def server_socket(session: Session, said: int, heard: int) -> socket.socket:
    """The same for the server's leg, with the windows that the two ends have offered each other."""
    send_window = max(0, session.up.edge - said)
    receive_window = max(0, min(_RECEIVE_WINDOW, session.down.edge - heard))
    return leg_socket(session.legs[SERVER], said, heard, send_window, receive_window)
