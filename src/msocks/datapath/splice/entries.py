"""Fills a session's entry in the kernel half's table from what this host's sockets know."""

from __future__ import annotations

import ctypes
import socket
from dataclasses import dataclass

from msocks.datapath.interface import Attachment, Counters, Successor
from msocks.datapath.splice.layout import NO_FIN, SERVER, FlowKey, Leg, LegFlag, Session, SessionFlag
from msocks.datapath.splice.options import LegOptions, read_options
from msocks.datapath.splice.segments import MAPPED_PREFIX, End
from msocks.datapath.splice.tables import flow_key
from msocks.session.resume import StreamState

_KEY_BYTES = ctypes.sizeof(FlowKey)
_LEG_BYTES = ctypes.sizeof(Leg)
_LOOPBACK_IPV4 = MAPPED_PREFIX + b"\x7f"
_LOOPBACK_IPV6 = bytes(15) + b"\1"


@dataclass(slots=True)
class Side:
    """One leg while a kernel socket has it: what the two ends have agreed on, and who they are."""

    options: LegOptions
    local: End
    remote: End

    @classmethod
    def of(cls, sock: socket.socket, *, unread: bool = True) -> Side:
        """Ask the kernel. Raises OSError where the connection is lost."""
        options = read_options(sock, unread=unread)
        family = sock.family
        return cls(options, _end(family, sock.getsockname()), _end(family, sock.getpeername()))

    @property
    def family(self) -> int:
        """4 or 6: the packets', whatever the socket's."""
        return 4 if self.local[0].startswith(MAPPED_PREFIX) else 6

    @property
    def is_local(self) -> bool:
        """Whether the peer is on this host: its packets pass no interface that could be hooked."""
        address = self.remote[0]
        return address == self.local[0] or address.startswith(_LOOPBACK_IPV4) or address == _LOOPBACK_IPV6


def _end(family: int, sockaddr: tuple[str, int]) -> End:
    if family == socket.AF_INET:
        return MAPPED_PREFIX + socket.inet_aton(sockaddr[0]), sockaddr[1]
    return socket.inet_pton(socket.AF_INET6, sockaddr[0].partition("%")[0]), sockaddr[1]


def leg_key(sock: socket.socket) -> bytes:
    """What arrives for a connected socket, laid out as in struct flow_key. Raises OSError where it is lost."""
    family = sock.family
    return flow_key(_end(family, sock.getpeername()), _end(family, sock.getsockname()))


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
    key = flow_key(side.remote, side.local)
    ctypes.memmove(ctypes.addressof(leg), key, _KEY_BYTES)
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
    ctypes.memset(ctypes.addressof(leg), 0, _LEG_BYTES)
    fill_leg(leg, side)
    options = side.options
    leg.generation = attachment.generation
    leg.begins_in = leg.arrived = attachment.up_from
    leg.begins_out = attachment.down_from
    leg.reply_length = len(attachment.reply)
    leg.consumed = options.bytes_received - options.bytes_unread - len(attachment.early)


def fill_successor(leg: Leg, side: Side, successor: Successor) -> None:
    """The same of a leg that is to take over in a handover, before it is attached."""
    ctypes.memset(ctypes.addressof(leg), 0, _LEG_BYTES)
    fill_leg(leg, side)
    leg.begins_in = leg.arrived = successor.up_from
    leg.consumed = successor.request_bytes


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
    """Bytes of both streams that have come to the splice."""
    up, down = session.up, session.down
    return Counters(up=min(up.sent, up.fin), down=min(down.sent, down.fin))


def _without_fin(offset: int, fin: int | None) -> int:
    return offset if fin is None else min(offset, fin)
