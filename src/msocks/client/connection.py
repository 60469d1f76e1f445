"""One session at the mobile node: carries out what its state machine (`msocks.session.mobile`) decides."""

from __future__ import annotations

import asyncio
import errno
import socket

from msocks.client.awaited_moves import AwaitedMoves
from msocks.client.ended_sessions import EndedSession
from msocks.client.leg_attempt import LegAttempt
from msocks.client.leg_question import leg_request
from msocks.client.network import ConnectionListener, Network
from msocks.client.upstream_position import UpstreamPosition
from msocks.errors import EndReason, LinkUnavailable, MsocksError, ProtocolError, SessionEnded
from msocks.protocol.control import ParkedLeg
from msocks.protocol.inbound import Incoming
from msocks.protocol.leg import DatapathKind, DatapathReason, LegStatus, ReceivedReply
from msocks.protocol.leg_request_codec import encode_request
from msocks.session import mobile_effects as mobile
from msocks.session.leg_chain import StreamGapError
from msocks.session.mobile import HOLD_DOWN_S, MobileSession
from msocks.session.mobile_effects import SessionState
from msocks.transport.kernel import deafen
from msocks.transport.leg_stream import LegStream
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId


class Connection:
    """A session with its stream; see the module. All calls on the event loop's thread."""

    def __init__(
        self,
        network: Network,
        destination: Endpoint,
        stream: LegStream,
        listener: ConnectionListener,
        incoming: Incoming | None = None,
    ) -> None:
        """`destination` is the server or, with `incoming`, the peer that has connected to the proxy."""
        self.session = SessionId.generate() if incoming is None else incoming.session
        self.destination = destination
        self.stream = stream
        self.bound = None if incoming is None else incoming.bound
        self.told_split = False  # the proxy goes by this side's word on the live leg, and not by ACKs
        self.datapath = DatapathKind.NONE
        self.datapath_reason = DatapathReason.UNSPECIFIED
        self._network = network
        self._listener = listener
        self._machine = MobileSession(str(destination), inbound=incoming is not None)
        self._attempts: dict[int, LegAttempt] = {}
        self._is_inbound = incoming is not None
        self._accepted: list[tuple[LegAttempt, ReceivedReply]] = []  # abandoned before any leg was known to stand
        self._handover_link: str | None = None  # of the leg that hands over, or did last
        self._live: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connected: asyncio.Future[Endpoint | None] = network.reactor.loop.create_future()
        self._moves = AwaitedMoves(network.reactor.loop)
        self.position = UpstreamPosition(network, self.session, stream)
        stream.on_sent = self._sent
        stream.watches_handovers = True

    @property
    def state(self) -> SessionState:
        """Connecting, live, parked or ended."""
        return self._machine.state

    @property
    def link(self) -> str | None:
        """The link that carries the session, or that is being tried."""
        return self._machine.link

    @property
    def carried_by(self) -> str | None:
        """The link that carries the session or, while none does, that carried it last."""
        return self._machine.carried_by

    @property
    def usable_links(self) -> tuple[str, ...]:
        """The links that it may use and that can be used now."""
        return self._machine.links

    @property
    def generation(self) -> int:
        """The generation of the live leg."""
        return self._machine.generation

    @property
    def moves(self) -> int:
        """How many times the session got another leg."""
        return self._machine.moves

    @property
    def leg(self) -> socket.socket | None:
        """The live leg's socket, to ask the kernel about; never to read or write."""
        return self._live if self._machine.state is SessionState.LIVE else None

    async def connected(self) -> Endpoint | None:
        """Wait for the first leg; the result is the proxy's address toward the server.

        Raises DestinationError where the proxy cannot or may not connect, SessionEnded where it ended the session.
        """
        return await asyncio.shield(self._connected)

    async def move(self, link: str) -> None:
        """Carry the session over `link`; return when it runs there.

        Raises LinkUnavailable (the session goes on where it was), SessionEnded.
        """
        if self.state is SessionState.ENDED:
            raise SessionEnded(EndReason.UNKNOWN)
        done = self._moves.to(link)
        self._apply(self._machine.move(self._now(), link))
        await done

    def prefer(self, link: str) -> None:
        """Use `link` above all others; before the first leg."""
        self._machine.prefer(link)

    def release(self) -> None:
        """Undo `prefer` and the preference that `move` has left."""
        self._machine.release()

    def give_up(self, error: MsocksError) -> None:
        """End the connection with `error` if it never stood."""
        self._apply(self._machine.give_up(error))

    def finished(self) -> None:
        """Both directions have ended and all was delivered."""
        generation, link = self._machine.newest_generation, self._machine.link
        if link is not None and self.state is not SessionState.ENDED:
            self._network.finished(link, EndedSession(self.session, generation, self.stream.written))
        self._apply(self._machine.ended(EndReason.CLOSED))

    def abort(self) -> None:
        """The program is gone or wants a reset: the proxy is told, so that the server gets it."""
        self._reset(EndReason.CLIENT_CLOSED)

    def links_changed(self, links: tuple[str, ...], rtt_s: dict[str, float], hold_down_s: float = HOLD_DOWN_S) -> None:
        """The links that can be used, in order of preference; see `MobileSession.links_changed`."""
        if self._handover_link not in links and self.stream.handing_over:
            self.stream.break_handover()
        self._apply(self._machine.links_changed(self._now(), links, rtt_s, hold_down_s), at_once=True)

    def leg_lost(self, generation: int, _error: OSError) -> None:
        """The stream says that its newest leg is dead; what is done is the same whatever the reason."""
        self._apply(self._machine.leg_lost(self._now(), generation))

    def lost_bytes(self, _gap: StreamGapError) -> None:
        """The stream has a gap that nothing can fill: end loudly at both ends."""
        self._reset(EndReason.BYTES_LOST)

    def proxy_ended(self, reason: EndReason) -> None:
        """The proxy says on a control channel that the session is over."""
        if reason is EndReason.CLOSED and self.stream.finishing:
            self.stream.confirm(self.stream.written, True)
        if reason is not EndReason.CLOSED:  # of an orderly end the leg's own FIN tells, after the last byte
            self._apply(self._machine.ended(reason))

    def leg_accepted(self, generation: int) -> None:
        """The proxy says on a control channel that it has accepted a leg; one of somebody else is displaced."""
        self._apply(self._machine.foreign_leg(self._now(), generation))

    def keys_changed(self, key_up: bytes) -> None:
        """The proxy has told the keys: whoever was asked under others answers no more, and nobody waits any longer."""
        for attempt in list(self._attempts.values()):
            if attempt.said and attempt.key_up != key_up:
                if attempt.disowned:
                    self._machine.disowned(attempt.generation)
                self._on_failure(attempt, LinkUnavailable(attempt.link, "the proxy was restarted before it answered"))
        self._apply(self._machine.retry(self._now()))

    def _reset(self, reason: EndReason) -> None:
        """End without order, at both ends."""
        if self.state is not SessionState.ENDED:
            self._apply(self._machine.ended(reason))
            self._network.close_session(self.session, self._machine.newest_generation)

    def _now(self) -> float:
        return self._network.reactor.loop.time()

    def _apply(self, effects: list[mobile.Effect], *, at_once: bool = False) -> None:
        """With `at_once`, which none of the stream's calls may ask for, another leg begins before this returns."""
        was_parked = False
        for effect in effects:
            match effect:
                case mobile.Attempt():
                    self._begin(effect, at_once=at_once and effect.reconnect)
                case mobile.Abandon(generation):
                    self._abandon(generation)
                case mobile.Carried():
                    self._carried(effect)
                case mobile.Parked(generation):
                    if self._live is not None:
                        # When its link comes back it must not talk the server into sending on a leg that is given up.
                        deafen(self._live)
                        self.position.leg_lost(self._live)
                        self._live = None
                    if generation:
                        self._network.park(ParkedLeg(self.session, generation, self.stream.received()))
                    if self._machine.attempting is None or not self.stream.sends_on(self._machine.attempting):
                        self.stream.stop_sending()
                    was_parked = True
                case mobile.MoveFailed(link, error):
                    self._moves.failed(link, error)
                case mobile.Ended(error):
                    self._end(error)
        self._arm()
        if was_parked and self.state is not SessionState.ENDED:
            self._listener.on_parked()  # after all that the other end waits for

    def _sent(self) -> None:
        if (link := self._machine.link) is not None:
            self._network.sent(link)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (deadline := self._machine.deadline) is not None:
            self._timer = self._network.reactor.loop.call_at(deadline, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._apply(self._machine.on_time(self._now()))

    def _begin(self, effect: mobile.Attempt, *, at_once: bool) -> None:
        attempt = LegAttempt(
            self._network.reactor, effect.generation, effect.link, self._on_reply, self._on_failure, self.stream.flush
        )
        self._attempts[effect.generation] = attempt
        spare = self._network.take_spare(effect.link)
        asks = effect.reconnect and not effect.handover_from
        if self.position.begins_on(spare, ask=asks) and at_once and spare is not None:
            self._request(attempt, effect, spare)
        else:
            attempt.dial(self._dial(attempt, effect, spare), spare)

    async def _dial(self, attempt: LegAttempt, effect: mobile.Attempt, spare: socket.socket | None) -> None:
        gate = self._network.gates.at(attempt.link)
        if waits := gate.locked():
            self._apply(self._machine.takes_turn(self._now(), attempt.generation, waits=True))
        async with gate:
            if waits:
                self._apply(self._machine.takes_turn(self._now(), attempt.generation, waits=False))
            try:
                sock = await self.position.dial(attempt.link, spare)
            except (OSError, MsocksError) as error:
                self._on_failure(attempt, error)
                return
            self._request(attempt, effect, sock)
            if effect.reconnect:  # else the proxy waits for the server
                await attempt.over()

    def _request(self, attempt: LegAttempt, effect: mobile.Attempt, sock: socket.socket) -> None:
        attempt.dialing = None
        authority = self._network.authority
        try:
            if authority is None:
                raise LinkUnavailable(attempt.link, "the association with the proxy is being renewed")
            begins_at = self.position.beginning() if effect.reconnect else 0
            attempt.handover = self.stream.sends_on(effect.handover_from)
            if attempt.handover:
                begins_at = self.stream.sent_now
                self._handover_link = self._machine.link
            attempt.flight = self.position.flight
            attempt.split = self._network.is_split(attempt.link)
            request = leg_request(self, authority, attempt, effect, begins_at)
            attempt.say(sock, encode_request(request, authority.key_up), authority.key_up, authority.key_down)
        except (OSError, MsocksError) as error:
            sock.close()
            self._on_failure(attempt, error)
            return
        if effect.reconnect:
            # Upstream bytes follow the request at once: whatever the proxy has of them already, it skips.
            attempt.carry(self.stream, begins_at, doubtful=self._network.is_doubtful(attempt.link))
        self._machine.request_sent(self._now(), attempt.generation)
        self._arm()
        attempt.listen()
        if attempt.flight is not None and self.stream.sent_now != attempt.flight.end:
            self._on_failure(attempt, OSError(errno.EAGAIN, "the new connection does not take its first flight whole"))

    def _on_reply(self, attempt: LegAttempt, received: ReceivedReply) -> None:
        reply, authority = received.reply, self._network.authority
        if not received.verified:
            if authority is not None and reply.status in (LegStatus.UNKNOWN_ASSOCIATION, LegStatus.BAD_MAC):
                authority.forgotten(attempt.key_up)
                if self.state is SessionState.LIVE:
                    # A leg stands, and is given up only if this was forged: `keys_changed` tells, or time runs out.
                    attempt.disowned = True
                    attempt.cease()
                    return
            self._on_failure(attempt, LinkUnavailable(attempt.link, f"unverified answer {reply.status.name.lower()}"))
            return
        if authority is not None:
            authority.proxy_time_is(reply.proxy_ms)
        if reply.status is LegStatus.OK:
            self.datapath, self.datapath_reason = reply.datapath, reply.datapath_reason
            self.bound = reply.bound or self.bound
            if not self._adopt(attempt, received):
                return
        elif reply.status is LegStatus.ENDED_FIN and reply.down_fin_at is not None:
            self.stream.confirm_end(reply.down_fin_at)
        self._apply(self._machine.replied(self._now(), attempt.generation, reply))
        if reply.status is LegStatus.BAD_OFFSETS:  # the proxy waits for a leg that there will not be
            self._network.close_session(self.session, attempt.generation)

    def _adopt(self, attempt: LegAttempt, received: ReceivedReply) -> bool:
        """Join the leg to the stream; False at a gap."""
        reply, stream = received.reply, self.stream
        del self._attempts[attempt.generation]
        try:
            attempt.go_on(stream, reply.up_acked)
            while self._accepted:
                self._receive_on(*self._accepted.pop(0))
            self._receive_on(attempt, received)
        except StreamGapError as gap:
            stream.forget_leg(attempt.generation)
            attempt.close()
            self.lost_bytes(gap)
            return False
        self.told_split = attempt.split
        if attempt.sends_from is None:
            attempt.carry(stream, 0, doubtful=self._network.is_doubtful(attempt.link))
        stream.confirm(reply.up_acked, reply.up_fin_at is not None)
        return True

    def _receive_on(self, attempt: LegAttempt, received: ReceivedReply) -> None:
        down_from = received.reply.down_from
        self.stream.receive_on(attempt.sock, attempt.generation, down_from, attempt.early, handover=attempt.handover)

    def _resolve(self, attempt: LegAttempt) -> None:
        """Whether the proxy had accepted an abandoned leg is looked up once and for all.

        What its kernel has acknowledged of the stream lies behind the reply, and the proxy counts it as received. So
        either the reply is there, and the leg is read before its successors; or there is nothing to be lost.
        """
        attempt.deafen()
        late = attempt.late_reply()
        if late is not None and late.verified and late.reply.status is LegStatus.OK:
            try:
                if self._connected.done() or self._is_inbound:
                    self._receive_on(attempt, late)
                else:
                    self._accepted.append((attempt, late))
                return
            except StreamGapError as error:
                gap = error
            self._network.reactor.call_soon(lambda: self.lost_bytes(gap))
        self.stream.forget_leg(attempt.generation)
        attempt.close()

    def _on_failure(self, attempt: LegAttempt, error: Exception) -> None:
        known = error if isinstance(error, MsocksError) and not isinstance(error, ProtocolError) else None
        reason = known or LinkUnavailable(attempt.link, str(error))
        self._apply(self._machine.attempt_failed(self._now(), attempt.generation, reason))

    def _abandon(self, generation: int) -> None:
        attempt = self._attempts.pop(generation, None)
        if attempt is None:
            return
        attempt.cease()
        if self._machine.state is SessionState.LIVE:
            self.stream.resume_sending(self._machine.generation)
            self.stream.thaw()
        elif self.stream.sends_on(generation):
            self.stream.stop_sending()
        if attempt.said:
            self._resolve(attempt)

    def _carried(self, carried: mobile.Carried) -> None:
        self._moves.carried(carried.link)
        self._live = self.stream.live_socket
        self._network.carries()
        if not self._connected.done():
            self._connected.set_result(self.bound)
        if carried.from_link != carried.link or carried.cause is not mobile.MoveCause.REQUESTED:
            self._listener.on_carried(carried)

    def _end(self, error: MsocksError | None) -> None:
        self._live = None
        for attempt in [*self._attempts.values(), *(attempt for attempt, _ in self._accepted)]:
            self.stream.forget_leg(attempt.generation)
            attempt.close()
        self._attempts.clear()
        self._accepted.clear()
        self._moves.ended(error or SessionEnded(EndReason.CLOSED))
        if not self._connected.done():
            if error is None:
                self._connected.set_result(self.bound)
            else:
                self._connected.set_exception(error)
                self._connected.exception()  # whoever does not wait need not be told that nobody waited
        self._network.forget(self)
        self._listener.on_ended(error)
