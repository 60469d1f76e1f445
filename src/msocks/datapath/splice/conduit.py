"""The splice's conduit: one entry in the kernel half's table of sessions, from its first leg to its end."""

from __future__ import annotations

import socket
from collections.abc import Callable

from msocks.datapath.interface import Attachment, Carriage, ConduitOwner, Counters, LegEnd, Successor
from msocks.datapath.relay.conduit import RelayConduit
from msocks.datapath.splice import flows, retreat
from msocks.datapath.splice.adoption import AdoptedLeg, identity_of
from msocks.datapath.splice.entries import Side, counters, stream_state
from msocks.datapath.splice.events import HeldPacket
from msocks.datapath.splice.farewell import Farewell, reset_both, say_farewell
from msocks.datapath.splice.first_pair import SPLICED, FirstPair
from msocks.datapath.splice.fitting import check_place, misfit
from msocks.datapath.splice.handover import Handovers
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import SERVER, LegState, Session, SessionFlag, SessionState
from msocks.datapath.splice.owed import OwedBytes
from msocks.datapath.splice.parked import Parking
from msocks.datapath.splice.server_legs import Preparation
from msocks.datapath.splice.takeover import Takeover
from msocks.datapath.splice.unspliced import close_server, refuse
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.resume import StreamState

_NOTHING = StreamState(up_taken=0, up_fin=None, down_acknowledged=0, down_sent=0, down_available=0, down_fin=None)


class SpliceConduit:
    """Implements `msocks.datapath.interface.Conduit`."""

    __slots__ = (
        "_asked",
        "_closed",
        "_farewell",
        "_first",
        "_generation",
        "_handovers",
        "_host",
        "_over",
        "_owed",
        "_owner",
        "_parking",
        "_preparation",
        "_relay",
        "_reset_generation",
        "_resumable",
        "_takeover",
    )

    def __init__(
        self,
        host: SpliceHost,
        server: socket.socket | None,
        owner: ConduitOwner,
        preparation: Preparation | None,
        *,
        resumable: bool,
        unprepared: DatapathReason = DatapathReason.NO_ROOM,
    ) -> None:
        self._host = host
        # Until they are one.
        self._first = (
            FirstPair(host, server, preparation, resumable=resumable, unprepared=unprepared)
            if server is not None
            else None
        )
        self._owner = owner
        self._preparation = preparation
        self._resumable = resumable
        self._relay: RelayConduit | None = None
        self._asked: tuple[socket.socket, Carriage, Side | None] | None = None  # by carriage_for(), last
        self._generation = 0
        self._reset_generation = 0  # of the last leg of which that was told
        self._takeover: Takeover | AdoptedLeg | None = None  # of the present mobile leg
        self._handovers = Handovers(host, preparation.slot if preparation is not None else None, resumable=resumable)
        self._owed: OwedBytes | None = None
        self._parking: Parking | None = None  # from the first leg on
        self._farewell: Farewell | None = None
        self._over = False
        self._closed = False

    @property
    def kind(self) -> DatapathKind:
        if self._relay is not None:
            return self._relay.kind
        return DatapathKind.SPLICE if self._generation else DatapathKind.NONE

    @property
    def reason(self) -> DatapathReason:
        return self._relay.reason if self._relay is not None else DatapathReason.UNSPECIFIED

    @property
    def identity(self) -> bytes | None:
        if self._relay is not None or self._preparation is None:
            return None
        return identity_of(self._session, self._preparation.slot)

    @property
    def _spliced(self) -> bool:
        """Whether both sockets have vanished."""
        return self._first is None and self._relay is None

    @property
    def _session(self) -> Session:
        assert self._preparation is not None
        return self._preparation.session

    def carriage_for(self, leg: socket.socket, *, split: bool = False) -> Carriage:
        if self._relay is not None:
            return self._relay.carriage_for(leg)
        if self._first is not None and isinstance(self._takeover, Takeover):
            self._takeover.check()  # perhaps its reply has left meanwhile, and this is no first leg
        if self._first is not None:
            carriage, side = self._first.carriage_for(leg, split=split)
        else:
            carriage, side = self._carriage_of_later(leg, split)
        self._asked = leg, carriage, side
        return carriage

    def _carriage_of_later(self, leg: socket.socket, split: bool) -> tuple[Carriage, Side | None]:
        try:
            side = Side.of(leg)
        except OSError:  # it is lost, and has no peer any more
            return SPLICED, None
        if split and retreat.is_possible(self._session, self._owed):
            return Carriage(DatapathKind.RELAY, DatapathReason.MIDDLEBOX, handover=False), side
        reason = misfit(self._session, side)
        if reason is not None:
            return Carriage(DatapathKind.NONE, reason, handover=False), side
        return Carriage(DatapathKind.SPLICE, DatapathReason.UNSPECIFIED, handover=self._can_hand_over()), side

    def _can_hand_over(self) -> bool:
        if self._takeover is None or (self._owed is not None and self._owed.rest()):
            return False
        if self._parking is not None and self._parking.is_busy:
            return False
        return self._handovers.is_possible(self._takeover.number)

    def stop_leg(self, *, handover: bool = False, successor: Successor | None = None) -> None:
        if self._relay is not None:
            self._relay.stop_leg(handover=handover, successor=successor)
        elif self._spliced and handover and self._takeover is not None and self._can_hand_over():
            known = self._asked if successor is not None and self._asked is not None else (None, None, None)
            self._handovers.begin(self._takeover.number, successor, known[2])
        elif self._spliced:
            self._session.flags |= SessionFlag.STOPPED

    def park(self, received: int) -> None:
        self.stop_leg()
        if self._spliced and not self._handovers.awaits_attachment:
            self._handovers.end()
        if self._takeover is not None:
            self._park().park(received)

    def confirm(self, generation: int, received: int, *, at_end: bool, split: bool) -> None:
        if self._relay is not None:
            self._relay.confirm(generation, received, at_end=at_end, split=split)

    async def settle(self) -> None:
        if self._relay is None and self._spliced:
            await self._host.tables.settle()
            self._handovers.fix()

    def restart_leg(self) -> None:
        if self._relay is not None:
            self._relay.restart_leg()
        elif self._spliced and self._takeover is not None:
            self._handovers.take_back()
            session = self._session
            if session.legs[self._takeover.number].state == LegState.LIVE:
                session.flags &= ~SessionFlag.STOPPED

    def state(self) -> StreamState:
        if self._relay is not None:
            return self._relay.state()
        if not self._spliced:
            return _NOTHING
        state = stream_state(self._session, owed=self._owed.end if self._owed is not None else 0)
        return self._handovers.seen(state)

    def counters(self) -> Counters:
        if self._relay is not None:
            return self._relay.counters()
        return counters(self._session) if self._spliced else Counters(0, 0)

    def attach(self, leg: Attachment) -> None:
        if leg.generation <= self._generation:
            raise ValueError(f"generation {leg.generation} does not follow {self._generation}")
        if self._relay is None and (self._asked is None or self._asked[0] is not leg.sock):
            self.carriage_for(leg.sock, split=leg.split)
        asked, self._asked = self._asked, None
        if self._relay is None and asked is not None and asked[1].kind is DatapathKind.RELAY:
            try:
                self._become_relay(asked[1].reason, leg.down_from)
            except OSError:
                self._refuse(leg)
                return
        if self._relay is not None:
            if leg.generation > 1 or self._preparation is None:  # it may have come with a RECONNECT
                flows.uncap(self._host.tables, leg.sock)
            self._relay.attach(leg)
            return
        if self._first is None or leg.down_from or leg.up_from or leg.handover:
            state = self.state()
            check_place(leg, state)
            if leg.handover:
                self._handovers.check(leg, state)
        assert asked is not None
        self._take_leg(leg, asked[2])

    def _take_leg(self, leg: Attachment, side: Side | None) -> None:
        host, preparation = self._host, self._preparation
        assert preparation is not None
        session, old = preparation.session, self._takeover
        if leg.handover:
            self._hand_over(leg, side)
            return
        first = self._first
        self._generation = leg.generation
        if old is not None:
            self._handovers.end()
            old.cancel()
        old_number = old.number if old is not None and first is None else 0
        number = 2 if old_number == 1 else 1
        takeover = Takeover(host, session, number, self, resumable=self._resumable, old_number=old_number)
        self._takeover = takeover
        if first is not None:
            host.enter(preparation.slot, self)
            if first.take_over(takeover, leg, side):
                return
        elif side is not None and session.flags & SessionFlag.STOPPED:  # else the first has just begun to carry
            takeover.fill(side, leg)
            self._park().prepare(leg.down_from)
            if flows.put(host, preparation.slot, [(side.key, number)]):
                takeover.begin(None)
                return
        self._takeover = old
        self._refuse(leg)

    def _refuse(self, leg: Attachment) -> None:
        self._generation = leg.generation
        refuse(self._host, leg.sock)
        self._tell_leg_ended(leg.generation)

    def on_early(self, begin: int, early: bytes) -> None:
        # This conduit's, whatever leg comes next.
        self._owed = OwedBytes(self._host.reactor, self._session, self._host.output, begin, early)

    def _hand_over(self, leg: Attachment, side: Side | None) -> None:
        """The present leg was stopped for it; it drains."""
        assert self._takeover is not None
        self._generation = leg.generation
        successor = self._handovers.attach(leg, side)
        if successor is not None:
            self._takeover.cancel()
            self._takeover = successor
        else:
            self._tell_leg_ended(leg.generation)

    def on_live(self, takeover: Takeover) -> None:
        del takeover
        if self._parking is not None:
            self._parking.announce()

    def on_spliced(self, takeover: Takeover) -> None:
        self._first = None
        if takeover.old_number:
            flows.replace(self._host.tables, self._session, takeover.old_number, takeover.number)
        if self._parking is not None:
            self._parking.resume(takeover.number)

    def on_leg_lost(self, takeover: Takeover) -> None:
        if self._closed:
            return
        flows.take_out(self._host.tables, self._session.legs[takeover.number])
        self._tell_leg_ended(takeover.generation)

    def _park(self) -> Parking:
        if self._parking is None:
            self._parking = Parking(self._host, self._session)
        return self._parking

    def _become_relay(self, reason: DatapathReason, down_from: int = 0) -> None:
        """The server's kernel socket stays, and may speak; else there is one again (OSError where that cannot be)."""
        state, first = self.state(), self._first
        if first is not None:
            server, self._first = first.let_server_speak(), None
        else:
            assert self._preparation is not None
            server = retreat.to_kernel(self._host, self._preparation, state.up_taken, down_from)
            self._cease()
        self._relay = self._host.relay(reason).open(server, self._owner, resumable=self._resumable)
        self._relay.begin_at(state.up_taken, down_from, state.down_available)

    def on_leg_reset(self, generation: int) -> None:
        """An exact RST of the mobile's side has come."""
        if generation == self._generation and generation != self._reset_generation:
            self._reset_generation = generation
            self._tell_leg_ended(generation)

    def on_server_reset(self) -> None:
        """An exact RST of the server's has come."""
        if self._farewell is None:
            self._tell_last(lambda: self._owner.on_server_lost(LegEnd.RESET))

    def on_finished(self) -> None:
        """Both FINs are acknowledged."""
        self._tell_last(self._owner.on_finished)

    def on_expired(self) -> None:
        """The kernel's half has given up the entry: nothing has passed for days."""
        self._tell_last(lambda: self._owner.on_server_lost(LegEnd.TIMED_OUT))

    def on_reply_missing(self) -> None:
        """The mobile has what came behind the reply."""
        if self._takeover is not None:
            self._takeover.repeat()

    def on_held(self, packet: HeldPacket) -> None:
        if self._takeover is not None and not self._over:
            self._park().on_held(packet)

    def _tell_leg_ended(self, generation: int) -> None:
        def tell() -> None:
            if not self._over and generation == self._generation:
                self._owner.on_leg_ended(generation, LegEnd.RESET)

        self._host.reactor.call_soon(tell)

    def _tell_last(self, message: Callable[[], None]) -> None:
        """To be called from the event loop alone."""
        if not self._over:
            self._over = True
            message()

    def hang_up(self, up_end: int) -> None:
        if self._relay is None and not self._spliced:
            self._become_relay(DatapathReason.UNSPECIFIED)
        if self._relay is not None:
            self._relay.hang_up(up_end)
            return
        self._cease()
        self.stop_leg()
        self._host.reactor.loop.create_task(self._say_farewell(up_end))

    def _cease(self) -> None:
        """Owe nobody anything any more."""
        if self._takeover is not None:
            self._takeover.cancel()
        self._handovers.close()
        if self._parking is not None:
            self._parking.close()

    async def _say_farewell(self, up_end: int) -> None:
        await self.settle()
        if self._closed:
            return
        self._farewell = say_farewell(
            self._host,
            self._session,
            up_end,
            self._owed,
            on_finished=self.on_finished,
            on_lost=lambda: self._tell_last(lambda: self._owner.on_server_lost(LegEnd.RESET)),
        )

    def close(self, *, reset: bool) -> None:
        self._over = True
        if self._closed:
            return
        self._closed = True
        host, preparation = self._host, self._preparation
        self._cease()
        if self._owed is not None:
            self._owed.cancel()
        if self._relay is not None:
            self._relay.close(reset=reset)
            if preparation is not None:
                host.server_legs.release_port(preparation)
            return
        if self._farewell is not None:
            self._farewell.close(reset=reset)
        if self._first is not None:
            close_server(host, preparation, self._first.server, reset)
            return
        # An RST that has passed need not have been exact to its receiver: one behind all that was sent is said, too.
        if reset and self._session.state in (SessionState.OPEN, SessionState.CLOSING, SessionState.RESETTING):
            reset_both(self._session, self._takeover.number if self._takeover else SERVER, host.output)
        assert preparation is not None
        host.leave(preparation.slot)
        host.server_legs.ended(preparation.slot, preparation.incarnation)
