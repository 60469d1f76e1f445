"""Sessions that an earlier process has left in the kernel half's table: what can be told of them, and what is missing.

The entry knows all about a session's numbers. What it does not know is whose the session is, which is the proxy's
affair; and bytes. For a moment after a leg was taken over, this host is the only one who has some (`residual`), and if
the process dies then, they are gone. Therefore the entry says how much this host owes: `owed_up` and `owed_down`, where
in the stream those bytes end, which always begin at its beginning. They are delivered when the other end has
acknowledged so far.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from msocks.datapath.interface import Survivor
from msocks.datapath.splice.entries import stream_state
from msocks.datapath.splice.events import Event, EventType
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import NO_FIN, SERVER, LegFlag, LegState, Session, SessionFlag, SessionState
from msocks.datapath.splice.libbpf import RingBuffer
from msocks.datapath.splice.residual import Residual
from msocks.datapath.splice.segments import FIN, End
from msocks.datapath.splice.speech import ends, say
from msocks.datapath.splice.tables import Tables
from msocks.errors import EndReason
from msocks.values.endpoint import Endpoint

GRACE_S = 3.0
"""So long an ACK may be on its way, and the segment that it waits for be sent again, before bytes count as lost."""

_ENDS = {
    SessionState.CLOSING: EndReason.CLOSED,
    SessionState.RESET: EndReason.SERVER_RESET,
    SessionState.RESETTING: EndReason.PROXY_FAILED,
}


def identity_of(session: Session, slot: int) -> bytes:
    """Its slot, and which of all that ever had that: 8 bytes."""
    return slot.to_bytes(4, "big") + session.incarnation.to_bytes(4, "big")


def survivor_of(session: Session, slot: int) -> Survivor | None:
    """What an entry tells; None where it holds no session that was ever spliced."""
    if session.state in (SessionState.FREE, SessionState.OPENING):
        return None
    server, mobile = session.legs[SERVER], session.legs[session.active]
    bound, remote = ends(server)
    state = stream_state(session, owed=0)
    return Survivor(
        place=slot,
        identity=identity_of(session, slot),
        server=_endpoint(remote),
        bound=_endpoint(bound),
        client=_endpoint(ends(mobile)[1]),
        generation=mobile.generation,
        up_from=mobile.begins_in,
        down_from=mobile.begins_out,
        resumable=bool(session.flags & SessionFlag.RESUMABLE),
        parked=bool(session.flags & SessionFlag.STOPPED) or mobile.state != LegState.LIVE,
        end=_ENDS.get(SessionState(session.state)),
        down_fin=state.down_fin,
    )


def _endpoint(end: End) -> Endpoint:
    return Endpoint.from_sockaddr((str(IPv6Address(end[0])), end[1]))


def what_is_missing(session: Session) -> str:
    """Which bytes have died with the process that had them, unless an ACK is on its way; "" where none."""
    if session.up.acked < session.owed_up:
        return "what the client had sent with its request was acknowledged, and had not reached the server yet"
    if session.down.acked < session.owed_down:
        return "what the server had sent first was acknowledged, and had not reached the client yet"
    leg = session.legs[session.active]
    if not session.flags & SessionFlag.RESUMABLE and not leg.flags & LegFlag.REPLY_ACKED:
        return "the reply had not reached the client yet"
    return ""


def clear_handshakes(tables: Tables) -> None:
    """What was under way when the earlier process died has ended with its sockets."""
    tables.delete_openings()
    for slot in tables.taken_slots():
        if tables.session(slot).state == SessionState.OPENING:
            tables.forget_flows(slot)
            tables.free_slot(slot)


def freed_just_now(events: RingBuffer, tables: Tables) -> list[int]:
    """Read what the kernel's half has told while nobody listened; returns the slots that `tables` does not know as
    unused although they are.

    Everything else stands in the entries.
    """
    known = tables.unused_slots()
    freed: list[int] = []

    def note(raw: bytes) -> None:
        event = Event.from_buffer_copy(raw)
        is_current = tables.session(event.slot).incarnation == event.incarnation
        if event.type == EventType.FREED and is_current and event.slot not in known:
            freed.append(event.slot)

    events.consume(note)
    return freed


class AdoptedLeg:
    """The mobile leg of a session that was adopted: in the place of the `Takeover` that has died with its process.

    Where that owed the server's FIN, it is said again: it has no bytes that could be lost.
    """

    __slots__ = ("_residual", "number")

    def __init__(self, host: SpliceHost, session: Session) -> None:
        number = self.number = session.active
        self._residual: Residual | None = None
        leg, fin = session.legs[number], session.down.fin
        owes_fin = fin != NO_FIN and leg.begins_out == fin + 1
        if owes_fin and leg.state == LegState.LIVE and not leg.flags & LegFlag.REPLY_ACKED:

            def again() -> None:
                host.output.send(say(session, number, fin, b"", FIN))

            again()
            self._residual = Residual(
                host.residuals,
                again,
                lambda: bool(leg.flags & LegFlag.REPLY_ACKED),
                lambda _residual: None,
                timeout_s=3 * leg.round_trip_ms / 1000,
            )

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        residual, self._residual = self._residual, None
        if residual is not None:
            residual.cancel()

    def repeat(self) -> None:
        """The mobile has what came behind the reply, and the reply died with the process: only a new leg helps."""
