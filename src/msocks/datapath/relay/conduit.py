"""The relay's conduit: a pump between the server leg and the chain of mobile legs.

What was written to a mobile leg stays in memory until the mobile's kernel has ACKed it (SIOCOUTQ), so the proxy's
death is the session's: an ACK that the server sees was sent by the proxy's TCP. That is what the splice does better.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from msocks.datapath.interface import Attachment, Carriage, ConduitOwner, Counters, LegEnd, Successor, Survivor
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.leg_chain import StreamGapError
from msocks.session.resume import StreamState
from msocks.transport.kernel import prepare_leg
from msocks.transport.reactor import Reactor
from msocks.transport.socket_pump import SocketPump
from msocks.transport.sweep import Sweep
from msocks.values.endpoint import Address

_SO_MARK = 36
# Dead servers are found, and NATs on the way kept open, while a session may be without data for hours. An urgent byte
# stays in the stream, without its mark (RFC 6093 section 4): offsets would lose count.
_SERVER_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 300),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
)


class RelayConduit:
    """Implements `msocks.datapath.interface.Conduit`."""

    def __init__(
        self, reactor: Reactor, sweep: Sweep, server: socket.socket, owner: ConduitOwner, reason: DatapathReason
    ) -> None:
        self._reactor = reactor
        self._owner = owner
        self._reason = reason
        self._pump = SocketPump(reactor, server, self, sweep, owner.budget)
        self._generation = 0
        self._ended_generation = 0  # of the newest leg whose end was told
        self._over = False  # the owner was told that nothing more will come, or said so
        self._called = False  # by the owner, at this moment
        self._started = False

    def begin_at(self, up: int, down: int, down_sent: int) -> None:
        """Another datapath has carried both streams so far. Before the first leg.

        It has taken the upstream up to `up`. What it has sent of the downstream has arrived up to `down`, and may have
        beyond, up to `down_sent`, where the mobile may say so later.
        """
        self._pump.stream.begin_at(up, down, down_sent)

    @property
    def kind(self) -> DatapathKind:
        return DatapathKind.RELAY if self._generation else DatapathKind.NONE

    @property
    def reason(self) -> DatapathReason:
        return self._reason if self._generation else DatapathReason.UNSPECIFIED

    @property
    def identity(self) -> bytes | None:
        return None

    def carriage_for(self, leg: socket.socket, *, split: bool = False) -> Carriage:
        del split  # the stream knows what to do with such legs
        return Carriage(DatapathKind.RELAY, self._reason, handover=self._pump.stream.live_socket is not None)

    def stop_leg(self, *, handover: bool = False, successor: Successor | None = None) -> None:
        """A stopped leg goes on receiving: what its kernel has ACKed must not be lost."""
        del successor  # the kernel's buffers hold what comes meanwhile
        if handover:
            self._pump.stream.pause_sending()
        else:
            self._pump.stream.stop_sending()

    def park(self, received: int) -> None:
        del received  # the bytes up to there were ACKed to the server when they came
        self.stop_leg()

    def confirm(self, generation: int, received: int, *, at_end: bool, split: bool) -> None:
        stream = self._pump.stream
        self._called = True
        try:
            if split and generation == self._generation:
                stream.distrust()
            stream.confirm(received, at_end)
        finally:
            self._called = False

    async def settle(self) -> None:
        """Nothing to wait for: what the old leg's socket has received stays in its queue, and is drained from there."""

    def state(self) -> StreamState:
        stream = self._pump.stream
        return StreamState(
            up_taken=stream.received(),
            up_fin=stream.position if stream.at_eof else None,
            down_acknowledged=stream.acknowledged(),
            down_sent=stream.sent_now,
            down_available=stream.sent,
            down_fin=stream.written if self._pump.socket_ended else None,
        )

    def restart_leg(self) -> None:
        self._called = True
        try:
            self._pump.stream.resume_sending(self._generation)
        finally:
            self._called = False

    def attach(self, leg: Attachment) -> None:
        self._check(leg)
        stream = self._pump.stream
        self._called = True
        try:
            prepare_leg(leg.sock)
            # Receiving first: the old leg's last word is taken before sending on the new one can displace it.
            stream.receive_on(leg.sock, leg.generation, leg.up_from, leg.early, handover=leg.handover)
            self._generation = leg.generation
            stream.send_on(
                leg.sock, leg.generation, leg.down_from, preface=leg.reply, handover=leg.handover, split=leg.split
            )
            self._start()
        finally:
            self._called = False

    def _check(self, leg: Attachment) -> None:
        """Raise ValueError where the leg cannot be attached."""
        stream = self._pump.stream
        if leg.generation <= self._generation:
            raise ValueError(f"generation {leg.generation} does not follow {self._generation}")
        if leg.handover:
            if not self.carriage_for(leg.sock).handover:
                raise ValueError(f"no live leg hands over to leg {leg.generation}")
            first = last = stream.sent_now
        else:
            first, last = stream.acknowledged(), stream.sent
            if leg.up_from > (taken := stream.received()):
                raise ValueError(f"the leg begins at upstream byte {leg.up_from}, but only {taken} have arrived")
        if not first <= leg.down_from <= last:
            raise ValueError(f"the leg begins at downstream byte {leg.down_from}, outside {first} to {last}")

    def hang_up(self, up_end: int) -> None:
        self._start()
        self._pump.hang_up(up_end)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._pump.start()

    def counters(self) -> Counters:
        return Counters(up=self._pump.stream.position, down=self._pump.stream.written)

    def close(self, *, reset: bool) -> None:
        self._over = True
        self._pump.close(reset)

    # -- PumpOwner --------------------------------------------------------------------------------------------------

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        self._tell(lambda: self._tell_leg_ended(generation, _end_of(error)))

    def on_socket_failed(self, error: OSError) -> None:
        self._tell_last(lambda: self._owner.on_server_lost(_end_of(error)))

    def on_gap(self, error: StreamGapError) -> None:
        self._tell_last(lambda: self._owner.on_bytes_lost(str(error)))

    def on_finished(self) -> None:
        self._tell_last(self._owner.on_finished)

    # -- the owner --------------------------------------------------------------------------------------------------

    def _tell(self, message: Callable[[], None]) -> None:
        """Never from within a call of the owner's."""
        if self._called:
            self._reactor.call_soon(message)
        else:
            message()

    def _tell_leg_ended(self, generation: int, end: LegEnd) -> None:
        # A broken handover and the new leg's own end may both tell of it, and the old leg's end of a leg long replaced.
        if not self._over and self._ended_generation < generation == self._generation:
            self._ended_generation = generation
            self._owner.on_leg_ended(generation, end)

    def _tell_last(self, message: Callable[[], None]) -> None:
        def tell() -> None:
            if not self._over:
                self._over = True
                message()

        self._tell(tell)


def _end_of(error: OSError) -> LegEnd:
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return LegEnd.RESET
    if error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
        return LegEnd.TIMED_OUT
    return LegEnd.FAILED


class RelayDatapath:
    """Implements `msocks.datapath.interface.Datapath`; `reason` says why sessions are relayed.

    `mark` is put on the listeners' connections (SO_MARK, which takes CAP_NET_ADMIN), 0 for none.
    """

    def __init__(self, reactor: Reactor, reason: DatapathReason, *, mark: int = 0) -> None:
        self._mark = mark
        self._reactor = reactor
        self._sweep = Sweep(reactor)
        self._reason = reason

    @property
    def kind(self) -> DatapathKind:
        return DatapathKind.RELAY

    def prepare_listener(self, sock: socket.socket) -> None:
        """Legs inherit it: an urgent byte stays in the stream (RFC 6093 section 4), or offsets would lose count."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if self._mark:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, self._mark)

    def prepare_server_leg(
        self,
        sock: socket.socket,
        *,
        destination: tuple[Address, int],
        leg: socket.socket | None,
        smallest_mtu: int | None,
    ) -> None:
        """Nothing: the legs have MSS and options of their own."""

    def open(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> RelayConduit:
        for level, option, value in _SERVER_OPTIONS:
            server.setsockopt(level, option, value)
        # A plain client's RST reaches the owner like any other leg's end, and the owner then closes.
        return RelayConduit(self._reactor, self._sweep, server, owner, self._reason)

    def open_accepted(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> RelayConduit:
        return self.open(server, owner, resumable=resumable)

    async def troubles(self) -> dict[str, dict[str, int]]:
        return {}

    def survivors(self) -> list[Survivor]:
        """None: a relayed session ends with its process."""
        return []

    def adopt(self, survivor: Survivor, owner: ConduitOwner, *, resumable: bool) -> RelayConduit:
        raise LookupError(f"there is no session {survivor.place} to adopt")

    def close(self) -> None:
        """Nothing is held beside the conduits."""
