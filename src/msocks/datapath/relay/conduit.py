"""The relay's conduit: a pump between the server leg and the chain of mobile legs.

What was written to a mobile leg stays in memory until the mobile's kernel has ACKed it (SIOCOUTQ), so the proxy's
death is the session's: an ACK that the server sees was sent by the proxy's TCP. That is what the splice does better.
"""

from __future__ import annotations

import errno
import socket

from msocks.datapath.interface import (
    Attachment,
    ConduitOwner,
    Counters,
    LegEnd,
)
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.leg_chain import StreamGapError
from msocks.session.resume import StreamState
from msocks.transport.kernel import prepare_leg
from msocks.transport.reactor import Reactor
from msocks.transport.socket_pump import SocketPump
from msocks.transport.sweep import Sweep


class RelayConduit:
    """Implements `msocks.datapath.interface.Conduit`."""

    def __init__(
        self, reactor: Reactor, sweep: Sweep, server: socket.socket, owner: ConduitOwner, reason: DatapathReason
    ) -> None:
        self._owner = owner
        self._reason = reason
        self._pump = SocketPump(reactor, server, self, sweep)
        self._generation = 0
        self._started = False

    @property
    def kind(self) -> DatapathKind:
        return DatapathKind.RELAY

    @property
    def reason(self) -> DatapathReason:
        return self._reason

    def stop_leg(self) -> None:
        self._pump.stream.stop_sending()

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
        self._pump.stream.resume_sending(self._generation)

    def attach(self, leg: Attachment) -> None:
        stream = self._pump.stream
        stream.check_basepoint(leg.down_from)
        if leg.up_from > stream.received() and not leg.handover:
            raise ValueError(
                f"the leg begins at upstream byte {leg.up_from}, but only {stream.received()} have arrived"
            )
        prepare_leg(leg.sock)
        # Receiving first: the old leg's last word is taken before sending on the new one can displace it.
        stream.receive_on(leg.sock, leg.generation, leg.up_from, leg.early, handover=leg.handover)
        self._generation = leg.generation
        stream.send_on(leg.sock, leg.generation, leg.down_from, preface=leg.reply, handover=leg.handover)
        self._start()

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
        self._pump.close(reset)

    # -- PumpOwner --------------------------------------------------------------------------------------------------

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        if error.errno in (errno.ECONNRESET, errno.EPIPE):
            end = LegEnd.RESET
        elif error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
            end = LegEnd.TIMED_OUT
        else:
            end = LegEnd.FAILED
        self._owner.on_leg_ended(generation, end)

    def on_socket_failed(self, error: OSError) -> None:
        self._owner.on_server_reset(error)

    def on_gap(self, error: StreamGapError) -> None:
        self._owner.on_bytes_lost(str(error))

    def on_finished(self) -> None:
        self._owner.on_finished()


class RelayDatapath:
    """Implements `msocks.datapath.interface.Datapath`; `reason` says why sessions are relayed."""

    def __init__(self, reactor: Reactor, reason: DatapathReason) -> None:
        self._reactor = reactor
        self._sweep = Sweep(reactor)
        self._reason = reason

    @property
    def kind(self) -> DatapathKind:
        return DatapathKind.RELAY

    def open(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> RelayConduit:
        # A plain client's RST reaches the owner like any other leg's end, and the owner then closes.
        return RelayConduit(self._reactor, self._sweep, server, owner, self._reason)

    def close(self) -> None:
        """Nothing is held beside the conduits."""
