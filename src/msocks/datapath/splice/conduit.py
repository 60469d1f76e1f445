"""The splice's conduit: one entry in the kernel half's table of sessions, and what has to be said around it.

The order in which a leg is taken over leaves no gap. The entry and its flows are installed while both kernel sockets
still answer. Then the mobile leg's socket writes the reply: the egress hook sees it leave, notes where the numbers of
the leg stand, and from that instant the leg is spliced. What the kernel had acknowledged until then lies in the socket,
and is read from there. The server, which the egress hook had told a window of zero, gets the mobile's; and both sockets
vanish without a word.
"""

from __future__ import annotations

import ctypes
import socket
import time
from collections.abc import Callable
from typing import Protocol

from msocks.datapath.interface import Attachment, Carriage, ConduitOwner, Counters, LegEnd
from msocks.datapath.relay import RelayDatapath
from msocks.datapath.relay.conduit import RelayConduit
from msocks.datapath.splice.farewell import Farewell
from msocks.datapath.splice.layout import (
    NO_FIN,
    SERVER,
    FlowKey,
    Leg,
    LegFlag,
    LegState,
    Session,
    SessionFlag,
    SessionState,
)
from msocks.datapath.splice.options import LegOptions, is_local, read_options, reconcile
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.rebuild import vanish
from msocks.datapath.splice.residual import Residual
from msocks.datapath.splice.segments import FIN, MAPPED_PREFIX, PSH, RST, End
from msocks.datapath.splice.server_legs import Preparation, ServerLegs
from msocks.datapath.splice.speech import largest_payload, say
from msocks.datapath.splice.tables import Tables, flow_key
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.resume import StreamState
from msocks.transport.kernel import prepare_leg, reset_on_close
from msocks.transport.reactor import Reactor

_NOT_YET_S = 0.001  # the kernel has not sent the reply at once: its pacing, or a full queue
_NEVER_S = 5.0
_MOST_EARLY_BYTES = 1 << 20


class SpliceHost(Protocol):
    """What a conduit needs of its datapath."""

    @property
    def reactor(self) -> Reactor:
        """The event loop's part for sockets."""

    @property
    def tables(self) -> Tables:
        """The kernel half's tables."""

    @property
    def output(self) -> RawOutput:
        """Sends what was crafted."""

    @property
    def server_legs(self) -> ServerLegs:
        """Slots and ports."""

    def relay(self, reason: DatapathReason) -> RelayDatapath:
        """The relay, for a session that cannot be spliced for that reason."""

    def enter(self, slot: int, conduit: SpliceConduit) -> None:
        """Events about the slot are the conduit's."""

    def leave(self, slot: int) -> None:
        """The opposite; the slot itself goes when the kernel's half frees it."""


class SpliceConduit:
    """Implements `msocks.datapath.interface.Conduit`."""

    __slots__ = (
        "_carriage",
        "_closed",
        "_farewell",
        "_generation",
        "_host",
        "_number",
        "_options",
        "_over",
        "_owed_until",
        "_owner",
        "_preparation",
        "_reason",
        "_relay",
        "_residuals",
        "_resumable",
        "_server",
        "_spliced",
    )  # fmt: skip

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
        self._owner = owner
        self._preparation = preparation
        self._resumable = resumable
        self._relay: RelayConduit | None = None
        self._reason = DatapathReason.UNSPECIFIED
        self._carriage: Carriage | None = None
        self._options: LegOptions | None = None  # of the leg that was asked about last
        self._generation = 0
        self._number = 0  # of the mobile leg in the entry
        self._spliced = False
        self._owed_until = 0  # upstream bytes that this host has taken on itself
        self._residuals: list[Residual] = []
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
        options = self._options = read_options(leg)
        if self._spliced:
            reason = self._misfit(options)
            kind = DatapathKind.SPLICE if reason is None else DatapathKind.NONE
            return Carriage(kind, reason or DatapathReason.UNSPECIFIED, handover=False)
        reason = self._why_not(leg, options)
        if reason is None:
            return Carriage(DatapathKind.SPLICE, DatapathReason.UNSPECIFIED, handover=False)
        self._reason = reason
        return Carriage(DatapathKind.RELAY, reason, handover=False)

    def _why_not(self, leg: socket.socket, mobile: LegOptions) -> DatapathReason | None:
        """Why the first leg and the server leg cannot be spliced."""
        server = self._server
        assert server is not None
        if self._preparation is None:
            return DatapathReason.NO_ROOM
        if is_local(leg) or is_local(server):
            return DatapathReason.LOCAL_SERVER
        if not self._session.legs[SERVER].flags & LegFlag.NOTED:
            return DatapathReason.NO_KERNEL_SUPPORT  # its packets pass no interface with our programs
        return reconcile(mobile, read_options(server), tolerant=self._resumable)

    def _misfit(self, options: LegOptions) -> DatapathReason | None:
        """Why a later leg does not fit a session that is spliced: only what was agreed with the server counts."""
        server = self._session.legs[SERVER]
        if options.ecn or (server.flags & LegFlag.TIMESTAMPS and not options.timestamps):
            return DatapathReason.UNEQUAL_OPTIONS
        return None

    # -- stopping and looking ---------------------------------------------------------------------------------------

    def stop_leg(self, *, handover: bool = False) -> None:
        if self._relay is not None:
            self._relay.stop_leg(handover=handover)
        elif self._spliced:
            self._session.flags |= SessionFlag.STOPPED

    async def settle(self) -> None:
        if self._relay is None and self._spliced:
            await self._host.tables.settle()

    def restart_leg(self) -> None:
        if self._relay is not None:
            self._relay.restart_leg()
        elif self._spliced and self._session.legs[self._number].state == LegState.LIVE:
            self._session.flags &= ~SessionFlag.STOPPED

    def state(self) -> StreamState:
        if self._relay is not None:
            return self._relay.state()
        if not self._spliced:
            return StreamState(0, None, 0, 0, 0, None)
        session = self._session
        up, down = session.up, session.down
        up_fin = None if up.fin == NO_FIN else up.fin
        down_fin = None if down.fin == NO_FIN else down.fin
        sent = _without_fin(down.sent, down_fin)
        return StreamState(
            up_taken=max(_without_fin(up.acked, up_fin), self._owed_until),
            up_fin=up_fin,
            down_acknowledged=_without_fin(down.acked, down_fin),
            down_sent=sent,
            down_available=sent,
            down_fin=down_fin,
        )

    def counters(self) -> Counters:
        if self._relay is not None:
            return self._relay.counters()
        if not self._spliced:
            return Counters(0, 0)
        state, session = self.state(), self._session
        return Counters(up=_without_fin(session.up.sent, state.up_fin), down=state.down_sent)

    # -- a leg ------------------------------------------------------------------------------------------------------

    def attach(self, leg: Attachment) -> None:
        if leg.generation <= self._generation:
            raise ValueError(f"generation {leg.generation} does not follow {self._generation}")
        if self._relay is None and not self._spliced and self._carriage_is_relay(leg.sock):
            self._become_relay()
        if self._relay is not None:
            self._relay.attach(leg)
            return
        state = self.state()
        if not state.down_acknowledged <= leg.down_from <= state.down_available:
            raise ValueError(
                f"the leg begins at downstream byte {leg.down_from}, outside {state.down_acknowledged} to "
                f"{state.down_available}"
            )
        if leg.handover or leg.up_from > state.up_taken:
            raise ValueError(f"the leg begins at upstream byte {leg.up_from}, of {state.up_taken}; or hands over")
        self._take_leg(leg)

    def _carriage_is_relay(self, leg: socket.socket) -> bool:
        return self.carriage_for(leg).kind is DatapathKind.RELAY

    def _become_relay(self) -> None:
        """The server's kernel socket stays, and may speak."""
        server, preparation = self._server, self._preparation
        assert server is not None
        if preparation is not None:
            session = self._session
            entry = session.legs[SERVER]
            if entry.flags & LegFlag.NOTED:
                self._fill_server_leg(entry, server, read_options(server))
                window = read_options(server).receive_window
                greeting = say(session, SERVER, 0, window=window)
                self._host.tables.delete_opening(preparation.key)
                self._host.output.send(greeting)
            self._host.server_legs.release(preparation)
            self._preparation = None
        self._server = None
        relay = self._host.relay(self._reason)
        self._relay = relay.open(server, self._owner, resumable=self._resumable)

    def _take_leg(self, leg: Attachment) -> None:
        options = self._options
        assert options is not None
        preparation, tables = self._preparation, self._host.tables
        assert preparation is not None
        session = self._session
        old_number, self._number = self._number, 1 if self._number != 1 else 2
        entry = session.legs[self._number]
        self._generation = leg.generation
        self._cancel_residuals()
        try:
            prepare_leg(leg.sock)
            key = _fill_mobile_leg(entry, leg, options)
        except OSError:  # it was lost, and has no peer any more
            self._drop_leg(leg)
            return
        offered = max(0, options.send_window - len(leg.reply))
        if not self._spliced:
            assert self._server is not None
            self._begin(session, self._server, offered)
        entry.state = LegState.HANDSHAKE
        tables.put_flow(key, preparation.slot, self._number)
        try:
            leg.sock.send(leg.reply)
        except OSError:
            self._drop_leg(leg, key)
            return
        deadline = time.monotonic() + _NEVER_S
        self._on_reply_sent(leg, key, old_number, offered, deadline)

    def _begin(self, session: Session, server: socket.socket, offered: int) -> None:
        """Fill in what holds for the whole session."""
        assert self._preparation is not None
        options = read_options(server)
        entry = session.legs[SERVER]
        key = self._fill_server_leg(entry, server, options)
        session.up.fin = session.down.fin = NO_FIN
        session.up.edge = session.up.widest = options.send_window
        session.down.edge = session.down.widest = offered
        if self._resumable:
            session.flags |= SessionFlag.RESUMABLE
        entry.state = LegState.HANDSHAKE
        self._host.tables.put_flow(key, self._preparation.slot, SERVER)
        self._host.enter(self._preparation.slot, self)

    def _fill_server_leg(self, entry: Leg, server: socket.socket, options: LegOptions) -> bytes:
        assert self._preparation is not None
        local = _local_end(server)
        return _fill(entry, local, self._preparation.remote, options)

    def _on_reply_sent(self, leg: Attachment, key: bytes, old_number: int, offered: int, deadline: float) -> None:
        """The kernel has the reply; once it has left, the leg is spliced."""
        if self._closed or leg.generation != self._generation:
            vanish(leg.sock)
            return
        if self._session.legs[self._number].state == LegState.LIVE:
            self._taken_over(leg, old_number, offered)
        elif time.monotonic() > deadline or leg.sock.fileno() < 0:
            self._drop_leg(leg, key)
        else:
            self._host.reactor.loop.call_later(_NOT_YET_S, self._on_reply_sent, leg, key, old_number, offered, deadline)

    def _drop_leg(self, leg: Attachment, key: bytes | None = None) -> None:
        """The leg came to nothing."""
        if key is not None:
            self._host.tables.delete_flow(key)
        self._session.legs[self._number].state = LegState.NONE
        self._host.reactor.forget(leg.sock.fileno())
        vanish(leg.sock)
        generation = self._generation
        self._tell(lambda: self._owner.on_leg_ended(generation, LegEnd.RESET))

    def _taken_over(self, leg: Attachment, old_number: int, offered: int) -> None:
        host, session = self._host, self._session
        entry = session.legs[self._number]
        early = leg.early + _unread(leg.sock)
        host.reactor.forget(leg.sock.fileno())
        vanish(leg.sock)
        banner = b""
        server, self._server = self._server, None
        if server is not None:
            assert self._preparation is not None
            host.tables.delete_opening(self._preparation.key)
            banner = _unread(server)
            host.reactor.forget(server.fileno())
            vanish(server)
            self._spliced = True
        elif old_number:
            self._forget_leg(session.legs[old_number], entry)
        # The first word to the server says what the mobile's window is.
        if early:
            self._pass_on(session, early, leg.up_from, offered)
        else:
            host.output.send(say(session, SERVER, session.up.acked, window=offered))
        self._watch_reply(leg, banner)

    def _forget_leg(self, old: Leg, new: Leg) -> None:
        """What still comes on the old leg is nobody's. The new one may have the same addresses."""
        key = _key_of(old)
        old.state = LegState.NONE
        if key != _key_of(new):
            self._host.tables.delete_flow(key)

    def _watch_reply(self, leg: Attachment, banner: bytes) -> None:
        """The reply was said; say it again until the mobile has acknowledged it, and what belongs to it."""
        session, number = self._session, self._number
        entry = session.legs[number]
        first = leg.down_from
        said = leg.reply + banner
        fin = session.down.fin
        flags = PSH
        if banner:
            session.down.sent = max(session.down.sent, first + len(banner))
            session.legs[SERVER].arrived = max(session.legs[SERVER].arrived, first + len(banner))
            entry.begins_out = first + len(banner)
        if fin != NO_FIN and session.down.acked > fin:
            # An earlier leg has acknowledged the server's FIN, so the server says it no more: this leg needs its own.
            entry.begins_out = fin + 1
            flags |= FIN
        offset = first - len(leg.reply)

        def again() -> None:
            self._host.output.send(say(self._session, number, offset, said, flags))

        if banner or flags & FIN:
            again()
        self._owe(again, lambda: bool(self._session.legs[number].flags & LegFlag.REPLY_ACKED), entry.round_trip_ms)

    def _pass_on(self, session: Session, early: bytes, offset: int, offered: int) -> None:
        """Bytes that came behind the request.

        Those of a leg that was capped are the mobile's still: the server gets a copy. Others this host's kernel has
        acknowledged; they are sent again until the server has them.
        """
        known = max(0, session.up.acked - offset)
        early, offset = early[known:], offset + known
        entry = session.legs[SERVER]
        size = largest_payload(entry, self._host_mss())
        end = offset + len(early)
        session.up.sent = max(session.up.sent, end)
        arrived = session.legs[self._number]
        arrived.arrived = max(arrived.arrived, end)

        def pass_on() -> None:
            now = self._session
            limit = min(end, now.up.edge)
            begin = max(offset, now.up.acked)
            while begin < limit:
                piece = early[begin - offset : min(limit, begin + size) - offset]
                self._host.output.send(say(now, SERVER, begin, piece, PSH, window=offered))
                begin += len(piece)

        pass_on()
        if not (self._resumable and arrived.generation > 1):
            self._owed_until = max(self._owed_until, end)
            self._owe(pass_on, lambda: self._session.up.acked >= end, entry.round_trip_ms)

    def _host_mss(self) -> int:
        return 1220  # fits every IPv6 path (RFC 8200 section 5)

    def _owe(self, say_again: Callable[[], None], is_acknowledged: Callable[[], bool], round_trip_ms: int) -> None:
        def over(acknowledged: bool) -> None:
            del acknowledged  # a mobile that does not answer is found by those who watch over its links
            self._residuals.remove(residual)

        residual = Residual(
            self._host.reactor.loop, say_again, is_acknowledged, over, timeout_s=3 * round_trip_ms / 1000
        )
        self._residuals.append(residual)

    def _cancel_residuals(self) -> None:
        for residual in self._residuals:
            residual.cancel()
        self._residuals = []

    # -- events of the kernel's half ----------------------------------------------------------------------------------

    def on_leg_reset(self, generation: int) -> None:
        """An exact RST of the mobile's side has come."""
        if generation == self._generation:
            self._tell(lambda: self._owner.on_leg_ended(generation, LegEnd.RESET))

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
        for residual in tuple(self._residuals):
            residual.again()

    def _tell(self, message: Callable[[], None]) -> None:
        def tell() -> None:
            if not self._over:
                message()

        self._host.reactor.call_soon(tell)

    def _tell_last(self, message: Callable[[], None]) -> None:
        def last() -> None:
            self._over = True
            message()

        self._tell(last)

    # -- the end ----------------------------------------------------------------------------------------------------

    def hang_up(self, up_end: int) -> None:
        if self._relay is None and not self._spliced:
            self._reason = DatapathReason.UNSPECIFIED
            self._become_relay()
        if self._relay is not None:
            self._relay.hang_up(up_end)
            return
        self._cancel_residuals()
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
                self._host.tables.delete_flow(_key_of(leg))
        session.state = SessionState.RESET
        self._farewell.begin()

    def close(self, *, reset: bool) -> None:
        self._over = True
        if self._closed:
            return
        self._closed = True
        self._cancel_residuals()
        if self._relay is not None:
            self._relay.close(reset=reset)
            return
        if self._farewell is not None:
            self._farewell.close(reset=reset)
        preparation, server = self._preparation, self._server
        if server is not None:
            self._close_server(server, reset)
        elif reset and self._session.state in (SessionState.OPEN, SessionState.CLOSING):
            self._reset()
        if preparation is not None and self._spliced:
            self._host.leave(preparation.slot)

    def _close_server(self, server: socket.socket, reset: bool) -> None:
        """No leg has ever carried."""
        self._server = None
        preparation = self._preparation
        self._host.reactor.unwatch(server.fileno())
        reset_on_close(server, reset)
        if preparation is None:
            server.close()
            return
        entry = self._session.legs[SERVER]
        if entry.state == LegState.HANDSHAKE:
            self._host.tables.delete_flow(_key_of(entry))
            self._host.leave(preparation.slot)
        server.close()
        self._host.server_legs.release(preparation)

    def _reset(self) -> None:
        """RST to both ends; an end for which it is not exact says where it stands (RFC 5961), and is told again."""
        session = self._session
        session.state = SessionState.RESETTING
        session.last_ns = time.monotonic_ns()
        self._host.output.send(say(session, SERVER, max(session.up.acked, session.up.sent), b"", RST))
        if session.legs[self._number].state == LegState.LIVE:
            self._host.output.send(say(session, self._number, max(session.down.acked, session.down.sent), b"", RST))


def _key_of(leg: Leg) -> bytes:
    """What arrives on it: a leg begins with its addresses, laid out as in struct flow_key."""
    return ctypes.string_at(ctypes.addressof(leg), ctypes.sizeof(FlowKey))


def _without_fin(offset: int, fin: int | None) -> int:
    return offset if fin is None else min(offset, fin)


def _local_end(sock: socket.socket) -> End:
    return _end_of(sock.family, sock.getsockname())


def _end_of(family: int, sockaddr: tuple[str, int]) -> End:
    if family == socket.AF_INET:
        return MAPPED_PREFIX + socket.inet_aton(sockaddr[0]), sockaddr[1]
    return socket.inet_pton(socket.AF_INET6, sockaddr[0].partition("%")[0]), sockaddr[1]


def _fill(entry: Leg, local: End, remote: End, options: LegOptions) -> bytes:
    key = flow_key(remote, local)
    ctypes.memmove(ctypes.addressof(entry), key, len(key))
    entry.family = 4 if local[0].startswith(MAPPED_PREFIX) else 6
    entry.in_scale = options.snd_wscale or 0
    entry.out_scale = options.rcv_wscale or 0
    entry.round_trip_ms = options.round_trip_ms
    entry.flags |= (LegFlag.TIMESTAMPS if options.timestamps else 0) | (LegFlag.SACK if options.sack else 0)
    return key


def _fill_mobile_leg(entry: Leg, leg: Attachment, options: LegOptions) -> bytes:
    ctypes.memset(ctypes.addressof(entry), 0, ctypes.sizeof(entry))
    family = leg.sock.family
    key = _fill(entry, _end_of(family, leg.sock.getsockname()), _end_of(family, leg.sock.getpeername()), options)
    entry.generation = leg.generation
    entry.begins_in = entry.arrived = leg.up_from
    entry.begins_out = leg.down_from
    entry.reply_length = len(leg.reply)
    entry.consumed = options.bytes_received - options.bytes_unread - len(leg.early)
    return key


def _unread(sock: socket.socket) -> bytes:
    """What the kernel has acknowledged and nobody has read."""
    pieces = []
    total = 0
    while total < _MOST_EARLY_BYTES:
        try:
            piece = sock.recv(1 << 16)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
        total += len(piece)
    return b"".join(pieces)
