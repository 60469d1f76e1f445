"""A leg stream and its pump that outlive the process: no byte is ever in the process's memory alone.

Downstream, bytes are looked at in the leg (MSG_PEEK), given to the program, and only then taken out of the leg.
Upstream, the kernel writes them from the program's socket into a ring of memory that others hold as well. So after `kill -9` all
that is not in that ring is in the kernel's buffers of the two sockets, and the kernel's counters say how far each has
come: given to the program, but not yet taken from the leg, is what the next process discards.

That holds while one leg carries the session. While a reconnect is under way, or a leg hands over, the legs are told
nothing of: then the session goes on with a new leg, from what the program has got.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

from msocks.session.byte_budget import ByteBudget
from msocks.transport.leg import Leg
from msocks.transport.leg_stream import LegStream
from msocks.transport.outbound import Outbound
from msocks.transport.reactor import WRITABLE, Reactor
from msocks.transport.ring_retention import RingRetention
from msocks.transport.socket_pump import PumpOwner, SocketPump
from msocks.transport.stream_owner import StreamOwner
from msocks.transport.stream_position import StreamPosition, stream_position
from msocks.transport.sweep import Sweep


@dataclass(frozen=True, slots=True)
class LegMark:
    """What the kernel's counters of a leg are when both streams are at their beginning; see `StreamPosition`."""

    generation: int
    read: int
    written: int
    split: bool


class KeptStream(LegStream):
    """See the module."""

    peeks = True

    def __init__(
        self, reactor: Reactor, owner: StreamOwner, sweep: Sweep, budget: ByteBudget | None, ring: RingRetention
    ) -> None:
        super().__init__(reactor, owner, sweep, budget)
        self._ring = ring
        self._out = Outbound(budget, ring)
        self._noted: Leg | None = None
        self.on_leg: Callable[[], None] = lambda: None  # called before a reconnect, and when a leg carries alone
        self.on_leg_closed: Callable[[int], None] = lambda generation: None

    def mark(self) -> tuple[LegMark, socket.socket] | None:
        """Where the streams are on the leg that carries alone; None where none does."""
        leg = self._alone()
        if leg is None:
            return None
        try:
            at = stream_position(leg.sock)
        except OSError:
            return None
        begins = LegMark(
            leg.generation, at.read - self._chain.first_position, at.written - self._out.sent_now, split=leg.split
        )
        return begins, leg.sock

    def resume(self, position: int, leg: tuple[socket.socket, LegMark, StreamPosition] | None) -> None:
        """Go on where another process was: `position` bytes were read; the ring is in its state already."""
        self._chain.position = position
        if leg is None:
            self._out.begins_anew()
            return
        sock, mark, at = leg
        self._chain.add(mark.generation, at.read - mark.read, lambda generation: 0)
        resumed = Leg(sock, mark.generation, begins_at=self._ring.base, fin_sent=at.fin_sent, split=mark.split)
        self._legs[mark.generation] = resumed
        self._out.leg = resumed
        self._noted = resumed
        self._reactor.watch(sock.fileno(), lambda events: self._on_events(resumed, events))
        self._reactor.call_soon(self.flush)

    def consume(self, count: int) -> None:
        """The next `count` bytes, which `read` has shown, are where they belong."""
        first = self._chain.first
        assert first is not None  # `read` has just shown them
        self._legs[first].consume(count)
        self._chain.took(count)
        self._drop_exhausted()

    def take_from(self, sock: socket.socket, at_most: int) -> int:
        """Append what a socket has; how many bytes, 0 at its end. Raises as recv() does."""
        count = self._ring.take_from(sock, at_most)
        if count:
            self.flush()
            self._full = not self.writable
        return count

    def freeze(self) -> int:
        basepoint = super().freeze()
        self._note()
        return basepoint

    def stop_sending(self) -> None:
        super().stop_sending()
        self._note()

    def thaw(self) -> None:
        super().thaw()
        self._note()

    def send_on(
        self,
        sock: socket.socket,
        generation: int,
        begins_at: int,
        *,
        overhead: int = 0,
        preface: bytes = b"",
        handover: bool = False,
        split: bool = False,
    ) -> None:
        super().send_on(sock, generation, begins_at, overhead=overhead, preface=preface, handover=handover, split=split)
        self._reactor.call_soon(self._note)

    def receive_on(
        self, sock: socket.socket, generation: int, begins_at: int, early: bytes = b"", *, handover: bool = False
    ) -> None:
        super().receive_on(sock, generation, begins_at, early, handover=handover)
        self._reactor.call_soon(self._note)

    def close(self) -> None:
        self.on_leg = lambda: None
        super().close()

    def _close(self, leg: Leg) -> None:
        self.on_leg_closed(leg.generation)
        super()._close(leg)
        self._reactor.call_soon(self._note)

    def _alone(self) -> Leg | None:
        leg = self._out.leg
        if leg is None or leg.failed or self._out.frozen or self._out.handing_over or len(self._legs) != 1:
            return None
        return leg if self._chain.newest == leg.generation and self._chain.first_is_last else None

    def _note(self) -> None:
        alone = self._alone()
        if alone is not self._noted:
            self._noted = alone
            self.on_leg()


class KeptPump(SocketPump):
    """Couples a program's socket with a `KeptStream`; see the module."""

    stream: KeptStream

    def __init__(
        self, reactor: Reactor, sock: socket.socket, owner: PumpOwner, sweep: Sweep, budget: ByteBudget | None,
        ring: RingRetention,
    ) -> None:  # fmt: skip
        self._ring = ring
        self._was_shut = False
        self._blocked = False  # the socket takes nothing more; what it is to get stays in the leg
        super().__init__(reactor, sock, owner, sweep, budget)

    def _new_stream(self, reactor: Reactor, sweep: Sweep, budget: ByteBudget | None) -> KeptStream:
        return KeptStream(reactor, self, sweep, budget, self._ring)

    def resume(self, program: StreamPosition) -> None:
        """The socket comes from another process."""
        self._was_shut = program.fin_sent

    def on_readable(self) -> None:
        if not self._blocked:
            super().on_readable()

    def _on_socket_events(self, events: int) -> None:
        if events & WRITABLE and self._blocked:
            self._blocked = False
            self.on_readable()
        super()._on_socket_events(events)

    def _shut_socket(self) -> None:
        if self._was_shut:  # a connection that both have ended would not be shut again
            self._socket_shut = True
            self._check_finished()
        else:
            super()._shut_socket()

    def _receive_from_socket(self, room: int) -> int:
        return self.stream.take_from(self._sock, room)

    def _give_to_socket(self, data: bytes | memoryview) -> bool:
        sent = 0
        try:
            with contextlib.suppress(BlockingIOError):
                sent = self._sock.send(data)
            self.stream.consume(sent)
        except OSError as error:
            self._fail_socket(error)
            return False
        self._blocked = sent < len(data)
        return not self._blocked
