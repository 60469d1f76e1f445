"""Fills a session's entry in the kernel half's table from what this host's sockets know."""

from __future__ import annotations

import ctypes
import socket
import time
from dataclasses import dataclass

from msocks.datapath.interface import Attachment, Counters, Successor
from msocks.datapath.splice.layout import NO_FIN, SERVER, FlowKey, Leg, LegFlag, LegState, Session, SessionFlag
from msocks.datapath.splice.options import LegOptions, read_leg, stays_near
from msocks.datapath.splice.segments import MAPPED_PREFIX
from msocks.session.resume import StreamState

_KEY_BYTES = ctypes.sizeof(FlowKey)
_LEG_BYTES = ctypes.sizeof(Leg)


@dataclass(slots=True)
class Side:
    """One leg while a kernel socket has it.

    Attributes:
        options: What the two ends have agreed on.
        key: Who they are, laid out as in struct flow_key: the remote address, the local one, their ports.
    """

    options: LegOptions
    key: bytes

    @classmethod
    def of(cls, sock: socket.socket, *, unread: bool = True) -> Side:
        """Ask the kernel. Raises OSError where the connection is lost."""
        return cls(*read_leg(sock, unread=unread))

    @property
    def family(self) -> int:
        """4 or 6: the packets', whatever the socket's."""
        return 4 if self.key.startswith(MAPPED_PREFIX, 16) else 6

    @property
    def is_local(self) -> bool:
        """Whether it cannot be spliced because of where the peer is: on this host, or link-local."""
        return stays_near(self.key[16:32], self.key[:16])


def leg_key(sock: socket.socket) -> bytes:
    """What arrives for a connected socket, laid out as in struct flow_key. Raises OSError where it is lost."""
    return read_leg(sock, unread=False)[1]


def key_of(leg: Leg) -> bytes:
    """What arrives on it: a leg begins with its addresses, laid out as in struct flow_key."""
    return ctypes.string_at(ctypes.addressof(leg), _KEY_BYTES)


def fill_session(session: Session, server: Side, *, offered: int, resumable: bool) -> None:
    """What holds for the whole session; `offered` is the mobile's window from the first byte of the stream on."""
    session.up.fin = session.down.fin = NO_FIN
    session.up.edge = session.up.widest = server.options.send_window
    session.down.edge = session.down.widest = offered
    if resumable:
        session.flags |= SessionFlag.RESUMABLE
    fill_leg(session.legs[SERVER], server)


def fill_leg(leg: Leg, side: Side) -> None:
    """Addresses and options; the flags that it has stay."""
    ctypes.memmove(ctypes.addressof(leg), side.key, _KEY_BYTES)
    options = side.options
    leg.family = side.family
    leg.in_scale = options.snd_wscale
    leg.out_scale = options.rcv_wscale
    leg.round_trip_ms = options.round_trip_ms
    if options.timestamps:
        leg.flags |= LegFlag.TIMESTAMPS
    if options.sack:
        leg.flags |= LegFlag.SACK


def fill_mobile_leg(leg: Leg, side: Side, attachment: Attachment) -> None:
    """All of a new leg that is known before its reply has left."""
    made = Leg()
    fill_leg(made, side)
    options = side.options
    made.state = LegState.HANDSHAKE
    made.generation = attachment.generation
    made.begins_in = made.arrived = attachment.up_from
    made.begins_out = attachment.down_from
    made.reply_length = len(attachment.reply)
    made.out_base = options.bytes_said & 0xFFFFFFFF
    made.consumed = options.bytes_received - options.bytes_unread - len(attachment.early)
    # In one piece: its packets may be looked up already.
    ctypes.memmove(ctypes.addressof(leg), ctypes.addressof(made), _LEG_BYTES)


def fill_successor(leg: Leg, side: Side, successor: Successor) -> None:
    """The same of a leg that is to take over in a handover, before it is attached."""
    made = Leg()
    fill_leg(made, side)
    made.begins_in = made.arrived = successor.up_from
    made.consumed = successor.request_bytes
    ctypes.memmove(ctypes.addressof(leg), ctypes.addressof(made), _LEG_BYTES)


def stream_state(session: Session, *, owed: int) -> StreamState:
    """Where both streams are; `owed` is what this host has taken of the upstream on itself."""
    up, down = session.up, session.down
    up_fin = None if up.fin == NO_FIN else up.fin
    down_fin = None if down.fin == NO_FIN else down.fin
    sent = _without_fin(down.sent, down_fin)
    return StreamState(
        up_taken=max(_without_fin(up.acked, up_fin), owed),
        up_fin=up_fin,
        down_acknowledged=_without_fin(down.acked, down_fin),
        down_sent=sent,
        down_available=sent,
        down_fin=down_fin,
    )


def counters(session: Session) -> Counters:
    """Of both streams, as they have come to the splice."""
    up, down = session.up, session.down
    return Counters(
        up=min(up.sent, up.fin),
        down=min(down.sent, down.fin),
        packets_up=up.packets,
        packets_down=down.packets,
        dropped=up.dropped + down.dropped,
        idle_s=max(0, time.monotonic_ns() - session.last_ns) / 1e9,
    )


def _without_fin(offset: int, fin: int | None) -> int:
    return offset if fin is None else min(offset, fin)
