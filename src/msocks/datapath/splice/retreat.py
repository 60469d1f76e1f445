"""A spliced session goes back to this host's kernel, for a relay to carry it on.

The server's leg becomes a socket again, in the middle of its connection, from the numbers of the splice. It is done
where a mobile leg comes whose ACKs the server must not hear: a middlebox's.
"""

from __future__ import annotations

import contextlib
import socket
import time

from msocks.datapath.splice import flows
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import MARK_OF_DAEMON, NO_FIN, SERVER, LegFlag, Session, SessionState
from msocks.datapath.splice.owed import OwedBytes
from msocks.datapath.splice.rebuild import provoke, rebuild
from msocks.datapath.splice.server_legs import Preparation
from msocks.datapath.splice.speech import ends

_WORD = 0xFFFFFFFF
_RECEIVE_WINDOW = 1 << 16
_MSS = 1220  # what the server has announced is not kept; this much passes everywhere


def is_possible(session: Session, owed: OwedBytes | None) -> bool:
    """Whether a socket could go on where the splice is: no direction has ended, and this host owes nobody a byte."""
    ended = session.up.fin != NO_FIN or session.down.fin != NO_FIN
    return session.state == SessionState.OPEN and not ended and (owed is None or not owed.rest())


def to_kernel(host: SpliceHost, preparation: Preparation, up_taken: int, down_from: int) -> socket.socket:
    """The server's leg as a socket; the splice knows the session no more. The mobile's leg is stopped, and settled.

    Args:
        host: The datapath.
        preparation: Of the session; its port stays its own.
        up_taken: U: what is sent on the socket begins there.
        down_from: D: what comes on it begins there. What is before, the mobile has.

    Raises:
        OSError: There is no such socket to be had; the session is as it was.
    """
    session = host.tables.session(preparation.slot)
    leg = session.legs[SERVER]
    clock = None
    if leg.flags & LegFlag.TIMESTAMPS:
        passed = max(0, time.monotonic_ns() - leg.ts_out_at) // 1_000_000
        clock = leg.ts_out + passed & _WORD
    sock = rebuild(
        *ends(leg),
        snd_nxt=leg.out_base + up_taken & _WORD,
        rcv_nxt=leg.in_base + down_from & _WORD,
        snd_wnd=max(0, session.up.edge - up_taken),
        rcv_wnd=max(0, min(_RECEIVE_WINDOW, session.down.edge - down_from)),
        snd_wscale=leg.in_scale,
        rcv_wscale=leg.out_scale,
        mss=_MSS,
        sack=bool(leg.flags & LegFlag.SACK),
        tsval=clock,
        mark=MARK_OF_DAEMON,
    )
    flows.leave(host.tables, session)
    host.leave(preparation.slot)
    host.tables.free_slot(preparation.slot)
    with contextlib.suppress(OSError):  # it is lost, and the relay finds out how
        provoke(sock)  # the server hears what the mobile has, and that there is room
    return sock
