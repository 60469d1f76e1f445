"""One mobile leg gives way to another while both live: what the daemon does of ``bpf/handover.h``.

The order leaves no segment without a leg. The new leg's kernel socket is made to say something, from which the kernel's
half learns where its numbers stand. Then the session's entry says that a leg hands over, and from that instant what is
new goes to the new leg, ahead of its reply. When nobody is inside the programs any more who has not seen that, the
split is final, and the reply can tell it. The old leg carries until both ends have acknowledged what went over it; then
it is closed as any connection is.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from dataclasses import replace

from msocks.datapath.interface import Attachment, Successor
from msocks.datapath.splice.entries import Side, fill_successor, key_of
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import (
    NO_FIN,
    NO_SPLIT,
    SERVER,
    Handover,
    LegFlag,
    LegState,
    Session,
    SessionFlag,
    SessionState,
)
from msocks.datapath.splice.leg_socket import leg_socket
from msocks.datapath.splice.rebuild import provoke, vanish
from msocks.datapath.splice.speech import say
from msocks.datapath.splice.takeover import Takeover
from msocks.errors import MsocksError
from msocks.session.resume import StreamState
from msocks.transport.kernel import reset_on_close

_WORD = 0xFFFFFFFF
_OTHER = {1: 2, 2: 1}  # the places of the mobile legs
_LOOK_S = 0.005
_LOOK_SELDOM_S = 0.1
_SOON_S = 1.0
_SAY_AGAIN_S = 0.2
_FIRST_ALLOWANCE = 65536  # a new connection's window, as Linux offers it
_NANOSECONDS_A_MS = 1_000_000
_LAST_WINDOW = 65535


class Handovers:
    """Those of one session, one after the other."""

    __slots__ = ("_host", "_now", "_resumable", "_slot")

    def __init__(self, host: SpliceHost, slot: int | None, *, resumable: bool) -> None:
        """Without a slot there are none."""
        self._host = host
        self._slot = slot
        self._resumable = resumable
        self._now: Succession | None = None

    @property
    def _session(self) -> Session:
        assert self._slot is not None
        return self._host.tables.session(self._slot)

    @property
    def awaits_attachment(self) -> bool:
        """Whether a leg was stopped to hand over, and the one that it hands over to is still to be attached."""
        return self._now is not None and self._now.awaits_attachment

    def is_possible(self, active: int) -> bool:
        """Whether the leg that carries could hand over: it lives, no direction has ended, and no other leg drains."""
        session = self._session
        return self.awaits_attachment or (
            session.legs[active].state == LegState.LIVE
            and not session.flags & SessionFlag.STOPPED
            and not session.handover.from_leg
            and session.up.fin == NO_FIN
            and session.down.fin == NO_FIN
        )

    def begin(self, old: int, successor: Successor | None, side: Side | None) -> None:
        """The leg `old` is given nothing new from now on."""
        assert self._slot is not None
        self._now = Succession(self._host, self._slot, old)
        self._now.begin(successor, side)

    def fix(self) -> None:
        """Nobody is inside the programs any more who has not seen that."""
        if self._now is not None and self._now.awaits_attachment:
            self._now.fix()

    def seen(self, state: StreamState) -> StreamState:
        """Where the streams are, to the leg that is going to take over."""
        if self._now is not None and self._now.awaits_attachment:
            return replace(state, down_sent=self._now.split)
        return state

    def check(self, leg: Attachment, state: StreamState) -> None:
        """Raise ValueError where the stopped leg cannot hand over to this one."""
        if not self.awaits_attachment:
            raise ValueError("no leg hands over")
        if leg.down_from != state.down_sent:
            raise ValueError(f"the leg begins at downstream byte {leg.down_from}, the other ends at {state.down_sent}")

    def attach(self, leg: Attachment, side: Side | None) -> Takeover | None:
        """The leg that was awaited carries; None where it came to nothing: the session is stopped, the socket gone."""
        host, succession = self._host, self._now
        assert succession is not None
        if side is None or not succession.prepare_late(leg, side):
            self._session.flags |= SessionFlag.STOPPED
            self.end()
            host.reactor.forget(leg.sock.fileno())
            vanish(leg.sock)
            return None
        takeover = Takeover(host, self._session, succession.number, None, resumable=self._resumable)
        succession.go_live(leg)
        takeover.begin_live(leg, window=succession.window)
        succession.drain()
        return takeover

    def take_back(self) -> None:
        """The leg that was awaited will not come: the stopped one carries on."""
        if self.awaits_attachment:
            self.end()

    def end(self) -> None:
        """No leg hands over any more; the session is stopped, or the new leg was not attached."""
        succession, self._now = self._now, None
        if succession is not None:
            succession.abandon()
        elif self._slot is not None and self._session.handover.from_leg:  # which an earlier process has begun
            session = self._session
            old = session.handover.from_leg
            end_handover(self._host, session, old if session.active != old else _OTHER[old])
        if self._slot is not None:
            # They were measured for a leg that goes.
            self._session.handover.allowance = self._session.handover.timed_end = 0

    def close(self) -> None:
        """The session is over."""
        if self._now is not None:
            self._now.close()


class Succession:
    """One handover; see the module. `abandon` or `drain` ends it."""

    def __init__(self, host: SpliceHost, slot: int, old: int) -> None:
        """The leg `old` gives way; which is said by `begin`."""
        self.number = _OTHER[old]
        self._host = host
        self._slot = slot
        self._session: Session = host.tables.session(slot)
        self._incarnation = self._session.incarnation
        self._old = old
        self._told_up = 0
        self._told_at = 0.0
        self._drain_began: float | None = None
        self._over = False

    @property
    def awaits_attachment(self) -> bool:
        """Whether the new leg is still to be attached."""
        return not self._over and self._drain_began is None

    @property
    def window(self) -> int:
        """Bytes that the server may send behind what was acknowledged: the new leg's right edge counts."""
        return max(0, self.split + self._session.handover.room - self._session.down.acked)

    @property
    def split(self) -> int:
        """Downstream bytes up to the end of what goes over the old leg; final once `fix` was called."""
        split: int = self._session.handover.split
        return self._session.down.sent if split == NO_SPLIT else split

    def begin(self, successor: Successor | None, side: Side | None) -> None:
        """From now on the old leg is given nothing new; what is new goes to the new one where that is known."""
        handover = self._session.handover
        # What limits the window since an earlier handover limits it until this one does: a moment without, and the
        # server sends all that its congestion window has saved.
        limit = handover.allowance, handover.since, handover.least_ns
        fresh = Handover(split=NO_SPLIT, allowance=limit[0], since=limit[1], least_ns=limit[2])
        ctypes.memmove(ctypes.addressof(handover), ctypes.addressof(fresh), ctypes.sizeof(Handover))
        if successor is not None and side is not None:
            self._prepare(side, successor)
        handover.from_leg = self._old
        self._tell_window()

    def fix(self) -> None:
        """Everybody who is inside the programs has seen it: the split is final."""
        self._host.tables.fix_split(self._slot)

    def prepare_late(self, leg: Attachment, side: Side) -> bool:
        """At `attach`, where nothing was prepared before; whether the new leg can take what is new."""
        if not self._session.handover.to:
            consumed = side.options.bytes_received - side.options.bytes_unread - len(leg.early)
            self._prepare(side, Successor(leg.sock, leg.up_from, consumed, len(leg.reply)))
        return bool(self._session.handover.to)

    def _prepare(self, side: Side, successor: Successor) -> None:
        session, number = self._session, self.number
        entry, handover = session.legs[number], session.handover
        fill_successor(entry, side, successor)
        entry.flags |= LegFlag.AWAITED
        entry.state = LegState.HANDSHAKE
        handover.reply_length = successor.reply_bytes
        handover.up_split = successor.up_from
        handover.room = max(0, side.options.send_window - successor.reply_bytes)
        try:
            self._host.tables.put_flows([(key_of(entry), number)], self._slot)
            provoke(successor.sock)
        except (OSError, MsocksError):
            return
        if not entry.flags & LegFlag.NOTED or not entry.path.known:
            return
        handover.since = time.monotonic_ns()
        handover.least_ns = entry.round_trip_ms * _NANOSECONDS_A_MS
        handover.allowance = _FIRST_ALLOWANCE
        handover.to = number

    def _tell_window(self) -> None:
        """The server may have been offered more than the new leg takes.

        Linux takes a smaller window from an ACK that acknowledges nothing new only where it is zero.
        """
        session, output = self._session, self._host.output
        stands = session.up.acked
        output.send(say(session, SERVER, stands, window=0))
        if session.handover.to:
            output.send(say(session, SERVER, stands, window=self.window))

    # -- to its end -------------------------------------------------------------------------------------------------

    def go_live(self, leg: Attachment) -> None:
        """The new leg belongs to the splice, and carries; its socket is silenced."""
        session = self._session
        entry = session.legs[self.number]
        entry.generation = leg.generation
        entry.reply_length = len(leg.reply)
        entry.begins_out = leg.down_from
        entry.out_base = (session.handover.base - leg.down_from) & _WORD
        session.mobile_edge = leg.down_from + session.handover.room
        session.active = self.number
        entry.state = LegState.LIVE

    def drain(self) -> None:
        """Let go of the old leg when both ends have acknowledged what went over it."""
        self._drain_began = time.monotonic()
        self._look()

    def abandon(self) -> None:
        """No leg hands over any more: the new one is taken out, or, where it carries already, the old one.

        The session must be stopped, or the new leg not attached.
        """
        if self._over:
            return
        self._over = True
        session = self._session
        carries = session.active == self.number
        end_handover(self._host, session, self._old if carries else self.number)
        if not carries:
            window = session.down.edge - session.down.acked
            self._host.output.send(say(session, SERVER, session.up.acked, window=window))

    def _is_another(self) -> bool:
        """Whether the entry has expired, and is perhaps somebody else's by now."""
        return bool(self._session.incarnation != self._incarnation or self._session.state == SessionState.FREE)

    def close(self) -> None:
        """The session is over."""
        if not self._over and not self._is_another() and self._drain_began is not None and self._is_drained():
            self._finish()
        self._over = True

    def _is_drained(self) -> bool:
        session, handover = self._session, self._session.handover
        return bool(session.down.acked >= handover.split and session.up.acked >= handover.up_split)

    def _look(self) -> None:
        if self._over or self._is_another():
            return
        # The end of the old leg must not overtake the reply on the new one: to the mobile it would be a loss.
        if self._is_drained() and self._session.legs[self.number].flags & LegFlag.REPLY_ACKED:
            self._finish()
            return
        now = time.monotonic()
        assert self._drain_began is not None
        self._acknowledge(now)
        interval_s = _LOOK_S if now < self._drain_began + _SOON_S else _LOOK_SELDOM_S
        self._host.reactor.loop.call_later(interval_s, self._look)

    def _acknowledge(self, now: float) -> None:
        """ACKs that come with data of the server's go to the new leg: the old one hears of them here."""
        session = self._session
        acked = min(session.up.acked, session.handover.up_split)
        again = acked == session.handover.up_split and now > self._told_at + _SAY_AGAIN_S
        if session.legs[self._old].state == LegState.LIVE and (acked > self._told_up or again):
            self._told_up, self._told_at = acked, now
            self._host.output.send(say(session, self._old, session.handover.split))

    def _finish(self) -> None:
        self._over = True
        session, old = self._session, self._session.legs[self._old]
        end_handover(self._host, session, self._old)
        self._host.tables.delete_cap(key_of(old))
        # The mobile is told by a FIN; where it is gone already, nobody has to hear it.
        with contextlib.suppress(OSError, MsocksError):
            handover = session.handover
            sock = leg_socket(old, handover.split, handover.up_split, _LAST_WINDOW, _LAST_WINDOW)
            reset_on_close(sock, False)
            sock.close()


def end_handover(host: SpliceHost, session: Session, number: int) -> None:
    """Whatever handover is under way in an entry is over; the leg of that number goes."""
    leg = session.legs[number]
    session.handover.from_leg = 0
    if leg.state != LegState.NONE:
        leg.state = LegState.NONE
        host.tables.delete_flow(key_of(leg))
