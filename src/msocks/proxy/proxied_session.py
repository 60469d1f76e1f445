"""One session at the proxy: joins the record of its life, the conduit of its bytes, and the legs that ask for it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import structlog

from msocks.datapath.interface import Conduit, Counters, LegEnd
from msocks.errors import EndReason
from msocks.protocol.control import LegAccepted, Parked, ReceivedStream, SessionEnded
from msocks.protocol.leg import DatapathKind, LegReply, LegStatus
from msocks.proxy.associations import Association
from msocks.proxy.dialler import Dial, DialFailure, DialResult
from msocks.proxy.reconnection import consider, consider_first, stale, successor
from msocks.proxy.session_host import SessionHost, SessionView
from msocks.proxy.waiting_leg import Grant, WaitingLeg, verdict
from msocks.session.byte_budget import ByteBudget
from msocks.session.record import SessionRecord, SessionState
from msocks.session.resume import ClientPosition
from msocks.values.endpoint import Address, Endpoint

_log = structlog.get_logger("msocks.proxy.session")


class ProxiedSession:
    """See the module. Implements `msocks.datapath.interface.ConduitOwner`."""

    __slots__ = (
        "_association",
        "_bound",
        "_conduit",
        "_dial",
        "_host",
        "_settling",
        "_sockaddr",
        "_waiting",
        "record",
    )  # fmt: skip

    def __init__(
        self,
        record: SessionRecord,
        host: SessionHost,
        leg: WaitingLeg | None,
        association: Association | None,
        sockaddr: tuple[Any, ...],
    ) -> None:
        """
        Args:
            record: Of the session.
            host: Who keeps it.
            leg: The one whose CONNECT opens it; None where it has been opened without one.
            association: Of the newest leg.
            sockaddr: Where that comes from.
        """
        self.record = record
        self._host = host
        self._association = association
        self._sockaddr = sockaddr
        self._waiting = leg
        self._dial: Dial | None = None
        self._conduit: Conduit | None = None
        self._bound: Endpoint | None = None
        self._settling: asyncio.Lock | None = None
        if leg is not None:
            record.claim(leg.generation)

    @property
    def budget(self) -> ByteBudget:
        """What the bytes held for the session count in."""
        return self._host.budget_of(self.record.user)

    @property
    def client(self) -> Endpoint:
        """Where the newest leg comes from."""
        return Endpoint.from_sockaddr(self._sockaddr)

    @property
    def awaits_first_leg(self) -> bool:
        """Whether it is a peer's connection that no leg has taken yet."""
        return self.record.state is SessionState.PARKED and self.record.generation == 0

    @property
    def outlives_process(self) -> bool:
        """Whether the datapath carries it on when this process is gone."""
        conduit = self._conduit
        return conduit is not None and conduit.kind is DatapathKind.SPLICE and conduit.identity is not None

    def view(self, durable: bool) -> SessionView:
        """The state for the operator."""
        conduit = self._conduit
        if conduit is None or conduit.kind is DatapathKind.NONE:
            return SessionView(self.record, self.client, "", "", Counters(0, 0), durable)
        kind, reason = conduit.kind.name.lower(), conduit.reason.name.lower().replace("_", " ")
        return SessionView(self.record, self.client, kind, reason, conduit.counters(), durable)

    # -- connecting -------------------------------------------------------------------------------------------------

    def dialling(self, dial: Dial) -> None:
        """The way to the server is being sought."""
        self._dial = dial

    def adopted(self, conduit: Conduit, bound: Endpoint) -> None:
        """An earlier process has connected and carried it."""
        self._conduit, self._bound = conduit, bound

    def prepare_server_leg(self, sock: socket.socket, destination: tuple[Address, int]) -> None:
        """A socket is about to be connected to `destination`. Raises OSError where the datapath cannot take it."""
        leg, association = self._waiting, self._association
        self._host.datapath.prepare_server_leg(
            sock,
            destination=destination,
            leg=leg.sock if leg is not None and not leg.gone else None,
            smallest_mtu=association.smallest_mtu if association is not None else None,
        )

    def on_dialled(self, result: DialResult) -> None:
        """The dial is over."""
        self._dial = None
        leg, self._waiting = self._waiting, None
        if isinstance(result, DialFailure):
            self._refused(result, leg)
            return
        self._begin(result, self._host.datapath.open(result, self, resumable=self.record.resumable), leg)

    def accepted(self, server: socket.socket) -> None:
        """A peer has connected, for the leg that waits for it, or for one that will come."""
        leg, self._waiting = self._waiting, None
        self._begin(server, self._host.datapath.open_accepted(server, self, resumable=self.record.resumable), leg)

    def _begin(self, server: socket.socket, conduit: Conduit, leg: WaitingLeg | None) -> None:
        self._bound = Endpoint.from_sockaddr(server.getsockname())
        self._conduit = conduit
        if leg is not None and not leg.gone:
            decision = consider_first(self.record, conduit, self._bound, leg)
            if isinstance(decision, Grant):
                self._attach(leg, conduit, decision)
                return
            self.record.withdraw(leg.generation)
            leg.answer(decision)
        if self.record.resumable:
            self.record.connected_without_leg(self._host.now())
            self._host.on_parked(self)
        else:
            self.end(EndReason.CLIENT_CLOSED)

    def _refused(self, failure: DialFailure, leg: WaitingLeg | None) -> None:
        record = self.record
        _log.info(
            "destination_failed",
            user=record.user,
            session=record.session.short,
            destination=str(record.destination),
            client=str(self.client),
            reply=failure.reply_code.name.lower(),
            reason=failure.reason,
        )
        reply = LegReply(status=LegStatus.REFUSED, socks_reply=failure.reply_code, generation=record.newest_claim)
        told = leg is not None and not leg.gone
        if leg is not None:
            leg.answer(reply)
        self.end(EndReason.REFUSED, reply_code=failure.reply_code, announce=not told)

    def leg_gone(self, leg: WaitingLeg) -> None:
        """A leg that was waiting for the server was lost. A plain client's session ends with it."""
        if self._waiting is leg:
            self._waiting = None
            if not self.record.resumable:
                self.end(EndReason.CLIENT_CLOSED)

    def join(self, leg: WaitingLeg) -> None:
        """A repeated CONNECT, whose destination is the same."""
        record = self.record
        if self._conduit is not None:
            self._carry_on(leg, None)
        elif not record.claim(leg.generation):
            leg.answer(stale(self.record))
        else:
            earlier, self._waiting = self._waiting, leg
            self._association, self._sockaddr = leg.association, leg.sockaddr
            if earlier is not None:
                earlier.answer(stale(self.record))

    # -- legs -------------------------------------------------------------------------------------------------------

    def reconnect(self, leg: WaitingLeg, position: ClientPosition, handover_from: int) -> None:
        """An authenticated RECONNECT; `handover_from` as there."""
        if self._conduit is None:
            # There is nothing to carry on yet; CONNECT with a new generation joins what is under way.
            leg.answer(LegReply(status=LegStatus.BUSY, generation=self.record.newest_claim))
        else:
            self._carry_on(leg, position, handover_from)

    def _carry_on(self, leg: WaitingLeg, position: ClientPosition | None, handover_from: int = 0) -> None:
        if not self.record.claim(leg.generation):
            leg.answer(stale(self.record))
            return
        self._host.spawn(self._take_over_or_fail(leg, position, handover_from))

    async def _take_over_or_fail(self, leg: WaitingLeg, position: ClientPosition | None, handover_from: int) -> None:
        try:
            await self._take_over(leg, position, handover_from)
        except Exception:
            self._failed()
            leg.answer(verdict(self.record))

    async def _take_over(self, leg: WaitingLeg, position: ClientPosition | None, handover_from: int) -> None:
        if self._settling is None:
            self._settling = asyncio.Lock()
        record, conduit, bound = self.record, self._conduit, self._bound
        assert conduit is not None  # else the leg had joined those
        assert bound is not None  # who wait for the server
        async with self._settling:
            # What can be refused is refused before the live leg is touched: to stop in vain costs retransmissions.
            decision = consider(record, conduit, bound, leg, position, handover_from)
            if isinstance(decision, Grant):
                conduit.stop_leg(handover=handover_from != 0, successor=successor(leg, position, handover_from))
                await conduit.settle()
                decision = consider(record, conduit, bound, leg, position, handover_from)
                if isinstance(decision, Grant):
                    self._attach(leg, conduit, decision)
                    return
                if record.state is SessionState.LIVE:
                    conduit.restart_leg()
            record.withdraw(leg.generation)
            leg.answer(decision)

    def _attach(self, leg: WaitingLeg, conduit: Conduit, grant: Grant) -> None:
        record = self.record
        attachment = leg.grant(grant)
        first, was_parked = record.generation == 0, record.state is SessionState.PARKED
        record.attach(leg.generation)
        self._association, self._sockaddr = leg.association, leg.sockaddr
        if was_parked:
            self._host.on_resumed(self)
        # A proxy that is killed between this and the reply leaves a record too many, and not one too few.
        noted = self._host.on_granted(record, self._association, grant, conduit.identity)
        try:
            conduit.attach(attachment)  # before all that can wait: the mobile does
        except Exception:
            self._failed()
            leg.discard()
            return
        self._host.on_carried(noted)
        if self._association is not None:
            self._association.announce(LegAccepted(record.session, leg.generation, leg.leg_number))
            _log.info(
                "session_opened" if first else "session_resumed",
                user=record.user,
                session=record.session.short,
                destination=str(record.destination),
                generation=leg.generation,
                client=str(self.client),
                datapath=grant.kind.name.lower(),
                **({"why": grant.reason.name.lower()} if grant.reason else {}),
            )

    def _failed(self) -> None:
        """The exception that is being handled is a fault of the proxy's."""
        _log.exception("session_failed", user=self.record.user, session=self.record.session.short)
        self.end(EndReason.PROXY_FAILED)

    def query(self, leg: WaitingLeg) -> None:
        """Tell the state; nothing changes."""
        conduit, bound = self._conduit, self._bound
        if conduit is None or bound is None:
            leg.answer(LegReply(status=LegStatus.OK, generation=self.record.newest_claim))
            return
        state = conduit.state()
        known = Grant(
            generation=self.record.generation,
            kind=conduit.kind,
            reason=conduit.reason,
            state=state,
            bound=bound,
            down_from=state.down_acknowledged,
            up_from=0,
            handover=False,
        )
        leg.answer(known.reply())

    def park(self, generation: int, received: int) -> bool:
        """The client says that its leg of `generation` is gone, and what it has received of the downstream.

        Returns whether the session waits for another leg now.
        """
        record = self.record
        if generation != record.generation:
            return False
        if record.detach(generation, self._host.now()):
            if self._conduit is not None:
                self._conduit.park(received)
            self._host.on_parked(self)
            _log.info("session_parked", user=record.user, session=record.session.short, cause="told by the client")
        return record.state is SessionState.PARKED

    def confirm(self, stream: ReceivedStream) -> ReceivedStream | None:
        """What the client has received where ACKs do not tell; the answer is what has arrived of the upstream."""
        conduit, record = self._conduit, self.record
        if conduit is None:
            return None
        conduit.confirm(stream.generation, stream.received, at_end=stream.at_end, split=stream.middlebox)
        state = conduit.state()
        return ReceivedStream(record.session, record.generation, state.up_taken, state.up_fin is not None)

    @property
    def received(self) -> int | None:
        """U: how much of the upstream has arrived; None where nothing carries the session yet, or any more."""
        return None if self._conduit is None else self._conduit.state().up_taken

    # -- the end ----------------------------------------------------------------------------------------------------

    def end(self, reason: EndReason, reply_code: int = 0, *, announce: bool = True) -> None:
        """End the session: the server and the mobile leg get RST, unless both directions had ended."""
        if self._bury(reason, reply_code, announce=announce):
            self._close_conduit(reset=reason is not EndReason.CLOSED)

    def hang_up(self, leg: WaitingLeg, up_end: int) -> None:
        """A graceful CLOSE: the server gets the upstream up to `up_end` and a FIN, and nobody hears it any more."""
        conduit, record = self._conduit, self.record
        taken = conduit.state().up_taken if conduit is not None else 0
        if up_end != taken:
            _log.warning(
                "offsets_refused",
                user=record.user,
                session=record.session.short,
                reason=f"a CLOSE says that the upstream ends at {up_end}, and {taken} bytes of it have arrived",
            )
            leg.answer(LegReply(status=LegStatus.BAD_OFFSETS, generation=record.generation))
            return
        self._bury(EndReason.CLIENT_CLOSED, 0, announce=True)
        if conduit is not None:
            self._host.on_hanging_up(self)
            conduit.hang_up(up_end)
        leg.answer(LegReply(status=LegStatus.OK, generation=record.generation))

    def cut(self) -> None:
        """The server does not end its direction: enough of waiting."""
        self._close_conduit(reset=True)

    def _close_conduit(self, *, reset: bool) -> None:
        """Let go of it too: they name each other, and only the garbage collector would find them when both are done."""
        conduit, self._conduit = self._conduit, None
        if conduit is not None:
            conduit.close(reset=reset)

    def _bury(self, reason: EndReason, reply_code: int, *, announce: bool) -> bool:
        record = self.record
        # Only who may ask later is told where the downstream ended.
        conduit = self._conduit if reason is EndReason.CLOSED and record.resumable else None
        if not record.finish(reason, reply_code, conduit.state().down_fin if conduit is not None else None):
            return False
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.cancel()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.answer(verdict(record))
        self._host.on_ended(self)
        if announce and self._association is not None:
            self._association.announce(SessionEnded(record.session, reason))
        if record.resumable:
            _log.info("session_ended", user=record.user, session=record.session.short, reason=reason.name.lower())
        return True

    def _over(self, reason: EndReason) -> None:
        """The conduit has come to its end, before or after the session's."""
        if self.record.state is SessionState.ENDED:
            self._host.on_hung_up(self)
            self._close_conduit(reset=reason is not EndReason.CLOSED)
        else:
            self.end(reason)

    # -- ConduitOwner -----------------------------------------------------------------------------------------------

    def on_leg_ended(self, generation: int, end: LegEnd) -> None:
        record = self.record
        if record.state is SessionState.ENDED:
            return
        if not record.resumable:
            self.end(EndReason.CLIENT_CLOSED)
        elif record.detach(generation, self._host.now()):
            self._host.on_parked(self)
            if self._association is not None:
                # The client may not have noticed: what reset the leg need not have told both ends.
                self._association.announce(Parked(((record.session, generation),)))
            _log.info("session_parked", user=record.user, session=record.session.short, cause=f"leg {end.value}")

    def on_server_lost(self, end: LegEnd) -> None:
        self._over(EndReason.SERVER_TIMED_OUT if end is LegEnd.TIMED_OUT else EndReason.SERVER_RESET)

    def on_bytes_lost(self, reason: str) -> None:
        _log.error("bytes_lost", user=self.record.user, session=self.record.session.short, reason=reason)
        self._over(EndReason.BYTES_LOST)

    def on_finished(self) -> None:
        self._over(EndReason.CLOSED)
