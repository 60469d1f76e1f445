"""The splice's conduit: one entry in the kernel half's table of sessions, from its first leg to its end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from msocks.datapath.interface import Attachment, Carriage, ConduitOwner, Counters, LegEnd, Successor
from msocks.datapath.relay.conduit import RelayConduit
from msocks.datapath.splice.entries import Side, counters, fill_leg, fill_session, key_of, leg_key, stream_state
from msocks.datapath.splice.farewell import Farewell, reset_both
from msocks.datapath.splice.fitting import misfit_of_first, misfit_of_later
from msocks.datapath.splice.handover import Handovers
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import SERVER, LegFlag, LegState, Session, SessionFlag, SessionState
from msocks.datapath.splice.server_legs import Preparation
from msocks.datapath.splice.speech import say
from msocks.datapath.splice.takeover import Takeover
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.resume import StreamState
from msocks.transport.kernel import reset_on_close

_SPLICED = Carriage(DatapathKind.SPLICE, DatapathReason.UNSPECIFIED, handover=False)
_NOTHING = StreamState(up_taken=0, up_fin=None, down_acknowledged=0, down_sent=0, down_available=0, down_fin=None)


class SpliceConduit:
    """Implements `msocks.datapath.interface.Conduit`."""

    __slots__ = (
        "_asked",
        "_closed",
        "_farewell",
        "_generation",
        "_handovers",
        "_host",
        "_over",
        "_owed_until",
        "_owner",
        "_preparation",
        "_reason",
        "_relay",
        "_resumable",
        "_server",
        "_server_side",
        "_spliced",
        "_takeover",
    )

    def __init__(
        self,
        host: SpliceHost,
        server: socket.socket,
        owner: ConduitOwner,
        preparation: Preparation | None,
        *,
        resumable: bool,
    ) -> None:
        self._host = host
        self._server: socket.socket | None = server
        self._server_side: Side | None = None
        self._owner = owner
        self._preparation = preparation
        self._resumable = resumable
        self._relay: RelayConduit | None = None
        self._reason = DatapathReason.UNSPECIFIED
        self._asked: tuple[socket.socket, Carriage, Side | None] | None = None  # by carriage_for(), last
        self._generation = 0
        self._spliced = False
        self._takeover: Takeover | None = None  # of the present mobile leg
        self._handovers = Handovers(host, preparation.slot if preparation is not None else None, resumable=resumable)
        self._owed_until = 0
        self._farewell: Farewell | None = None
        self._over = False
        self._closed = False

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def kind(self) -> DatapathKind:
        if self._relay is not None:
            return self._relay.kind
        return DatapathKind.SPLICE if self._generation else DatapathKind.NONE

    @property
    def reason(self) -> DatapathReason:
        return self._relay.reason if self._relay is not None else DatapathReason.UNSPECIFIED

    @property
    def _session(self) -> Session:
        assert self._preparation is not None
        return self._host.tables.session(self._preparation.slot)

    def carriage_for(self, leg: socket.socket) -> Carriage:
        if self._relay is not None:
            return self._relay.carriage_for(leg)
        try:
            side = Side.of(leg)
        except OSError:  # it is lost, and has no peer any more
            self._asked = leg, _SPLICED, None
            return _SPLICED
        reason = misfit_of_later(self._session, side) if self._spliced else self._why_not(side)
        if reason is None:
            carriage = Carriage(DatapathKind.SPLICE, DatapathReason.UNSPECIFIED, handover=self._can_hand_over())
        else:
            kind = DatapathKind.NONE if self._spliced else DatapathKind.RELAY
            carriage = Carriage(kind, reason, handover=False)
        self._asked = leg, carriage, side
        return carriage

    def _can_hand_over(self) -> bool:
        return self._takeover is not None and self._handovers.is_possible(self._takeover.number)

    def _why_not(self, mobile: Side) -> DatapathReason | None:
        """Why the first leg and the server leg cannot be spliced."""
        if self._preparation is None:
            return DatapathReason.NO_ROOM
        assert self._server is not None
        try:
            server = self._server_side = Side.of(self._server, unread=False)
        except OSError:
            return DatapathReason.UNSPECIFIED  # it is lost: the relay finds out how
        believed = self._host.told_mtus.segment(server.remote[0], server.family)
        return misfit_of_first(self._session, mobile, server, resumable=self._resumable, believed=believed)

    # -- stopping and looking ---------------------------------------------------------------------------------------

    def stop_leg(self, *, handover: bool = False, successor: Successor | None = None) -> None:
        if self._relay is not None:
            self._relay.stop_leg(handover=handover, successor=successor)
        elif self._spliced and handover and self._takeover is not None and self._can_hand_over():
            known = self._asked if successor is not None and self._asked is not None else (None, None, None)
            self._handovers.begin(self._takeover.number, successor, known[2])
        elif self._spliced:
            self._session.flags |= SessionFlag.STOPPED

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
        owed = self._takeover.owed_until if self._takeover is not None else 0
        state = stream_state(self._session, owed=max(owed, self._owed_until))
        return self._handovers.seen(state)

    def counters(self) -> Counters:
        if self._relay is not None:
            return self._relay.counters()
        if not self._spliced:
            return Counters(0, 0)
        return counters(self._session)

    # -- a leg ------------------------------------------------------------------------------------------------------

    def attach(self, leg: Attachment) -> None:
        if leg.generation <= self._generation:
            raise ValueError(f"generation {leg.generation} does not follow {self._generation}")
        if self._relay is None and (self._asked is None or self._asked[0] is not leg.sock):
            self.carriage_for(leg.sock)
        asked, self._asked = self._asked, None
        if self._relay is None and asked is not None and asked[1].kind is DatapathKind.RELAY:
            self._become_relay(asked[1].reason)
        if self._relay is not None:
            self._uncap(leg)
            self._relay.attach(leg)
            return
        self._check(leg, self.state())
        assert asked is not None
        self._take_leg(leg, asked[2])

    def _uncap(self, leg: Attachment) -> None:
        """What follows a RECONNECT that is relayed is this kernel's to acknowledge."""
        with contextlib.suppress(OSError):  # it is lost, and the relay finds out how
            self._host.tables.delete_cap(leg_key(leg.sock))

    def _check(self, leg: Attachment, state: StreamState) -> None:
        """Raise ValueError where the leg cannot be attached."""
        first, last = state.down_acknowledged, state.down_available
        if not first <= leg.down_from <= last:
            raise ValueError(f"the leg begins at downstream byte {leg.down_from}, outside {first} to {last}")
        if leg.up_from > state.up_taken and not leg.handover:
            raise ValueError(f"the leg begins at upstream byte {leg.up_from}, but only {state.up_taken} have arrived")
        if leg.handover:
            self._handovers.check(leg, state)

    def _take_leg(self, leg: Attachment, side: Side | None) -> None:
        host, preparation = self._host, self._preparation
        assert preparation is not None
        session = self._session
        old = self._takeover
        if leg.handover:
            self._hand_over(leg, side)
            return
        self._handovers.end()
        self._takeover = None
        self._generation = leg.generation
        if old is not None:
            self._owed_until = max(self._owed_until, old.owed_until)
            old.cancel()
        old_number = old.number if old is not None else 0
        if side is None:
            host.reactor.unwatch(leg.sock.fileno())
            leg.sock.close()
            self._tell_leg_ended(leg.generation)
            return
        number = 2 if old_number == 1 else 1
        takeover = self._takeover = Takeover(
            host.reactor, host.tables, host.output, session, number, side, resumable=self._resumable
        )
        flows = [(takeover.fill(leg), number)]
        if not self._spliced:
            assert self._server_side is not None
            fill_session(session, self._server_side, offered=takeover.offered, resumable=self._resumable)
            server = session.legs[SERVER]
            server.state = LegState.HANDSHAKE
            flows.append((key_of(server), SERVER))
            host.enter(preparation.slot, self)
        host.tables.put_flows(flows, preparation.slot)
        takeover.begin(
            self._server,
            lambda: self._on_spliced(old_number, number),
            lambda: self._on_leg_lost(leg.generation, number),
        )

    def _hand_over(self, leg: Attachment, side: Side | None) -> None:
        """The present leg was stopped for it; it drains."""
        assert self._takeover is not None
        self._generation = leg.generation
        self._owed_until = max(self._owed_until, self._takeover.owed_until)
        successor = self._handovers.attach(leg, side)
        if successor is None:
            self._tell_leg_ended(leg.generation)
            return
        self._takeover.cancel()
        self._takeover = successor

    def _on_spliced(self, old_number: int, number: int) -> None:
        """The leg is carried, and its socket gone; so is the server's."""
        self._server = self._server_side = None
        self._spliced = True
        if old_number:
            # What still comes on the old leg is nobody's. The new one may have the same addresses.
            session = self._session
            old, new = session.legs[old_number], session.legs[number]
            if old.state != LegState.NONE and key_of(old) != key_of(new):
                self._host.tables.delete_flow(key_of(old))
            old.state = LegState.NONE

    def _on_leg_lost(self, generation: int, number: int) -> None:
        if self._closed:
            return
        entry = self._session.legs[number]
        self._host.tables.delete_flow(key_of(entry))
        entry.state = LegState.NONE
        self._tell_leg_ended(generation)

    def _become_relay(self, reason: DatapathReason) -> None:
        """The server's kernel socket stays, and may speak."""
        server, preparation, side = self._server, self._preparation, self._server_side
        assert server is not None
        host = self._host
        if preparation is not None:
            session = self._session
            entry = session.legs[SERVER]
            host.tables.delete_opening(preparation.key)
            if entry.flags & LegFlag.NOTED and side is not None:
                # Its window was shown as zero; nobody has said otherwise yet.
                fill_leg(entry, side)
                host.output.send(say(session, SERVER, 0, window=side.options.receive_window))
            host.tables.free_slot(preparation.slot)
        self._server = None
        self._relay = host.relay(reason).open(server, self._owner, resumable=self._resumable)

    # -- events of the kernel's half ----------------------------------------------------------------------------------

    def on_leg_reset(self, generation: int) -> None:
        """An exact RST of the mobile's side has come."""
        if generation == self._generation:
            self._tell_leg_ended(generation)

    def on_server_reset(self) -> None:
        """An exact RST of the server's has come."""
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

    def _tell_leg_ended(self, generation: int) -> None:
        def tell() -> None:
            if not self._over and generation == self._generation:
                self._owner.on_leg_ended(generation, LegEnd.RESET)

        self._host.reactor.call_soon(tell)

    def _tell_last(self, message: Callable[[], None]) -> None:
        def tell() -> None:
            if not self._over:
                self._over = True
                message()

        self._host.reactor.call_soon(tell)

    # -- the end ----------------------------------------------------------------------------------------------------

    def hang_up(self, up_end: int) -> None:
        if self._relay is None and not self._spliced:
            self._become_relay(DatapathReason.UNSPECIFIED)
        if self._relay is not None:
            self._relay.hang_up(up_end)
            return
        if self._takeover is not None:
            self._takeover.cancel()
        self._handovers.close()
        self.stop_leg()
        self._host.reactor.loop.create_task(self._say_farewell(up_end))

    async def _say_farewell(self, up_end: int) -> None:
        await self.settle()
        if self._closed:
            return
        session = self._session
        self._farewell = Farewell(
            self._host.reactor,
            session,
            up_end,
            on_finished=lambda: self._tell_last(self._owner.on_finished),
            on_lost=lambda: self._tell_last(lambda: self._owner.on_server_lost(LegEnd.RESET)),
        )
        for leg in session.legs:
            if leg.state != LegState.NONE:
                self._host.tables.delete_flow(key_of(leg))
        session.state = SessionState.RESET
        self._farewell.begin()

    def close(self, *, reset: bool) -> None:
        self._over = True
        if self._closed:
            return
        self._closed = True
        host, preparation = self._host, self._preparation
        if self._takeover is not None:
            self._takeover.cancel()
        self._handovers.close()
        if self._relay is not None:
            self._relay.close(reset=reset)
            if preparation is not None:
                host.server_legs.release_port(preparation)
            return
        if self._farewell is not None:
            self._farewell.close(reset=reset)
        if self._server is not None:
            self._close_server(self._server, reset)
            return
        if reset and self._session.state in (SessionState.OPEN, SessionState.CLOSING):
            reset_both(self._session, host.output, self._takeover.number if self._takeover else 0)
        assert preparation is not None
        host.leave(preparation.slot)
        host.server_legs.ended(preparation.slot)

    def _close_server(self, server: socket.socket, reset: bool) -> None:
        """No leg has ever carried: it is an ordinary socket."""
        host, preparation = self._host, self._preparation
        self._server = None
        if preparation is not None:
            session = self._session
            for leg in session.legs:
                if leg.state != LegState.NONE:
                    host.tables.delete_flow(key_of(leg))
                    leg.state = LegState.NONE
            host.leave(preparation.slot)
        host.reactor.unwatch(server.fileno())
        reset_on_close(server, reset)
        server.close()
        if preparation is not None:
            host.server_legs.release(preparation)
