"""A leg stream and its pump that outlive the process: no byte is ever in the process's memory alone.

Downstream, bytes are looked at in the leg (MSG_PEEK), given to the program, and only then taken out of the leg.
Upstream, the kernel writes them from the program's socket into a ring of memory that others hold as well. So after
`kill -9` all that is not in that ring is in the kernel's buffers of the two sockets, and the kernel's counters say how
far each has come: given to the program, but not yet taken from the leg, is what the next process discards.

That holds while it is known which legs carry the session. From the request of a reconnect to its answer it is not: then
the session goes on with a new leg, from what the program has got.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass

from msocks.session.byte_budget import ByteBudget
from msocks.session.leg_chain import ChainLink
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
    """One leg of a stream, as its kernel's counters do not tell.

    Attributes:
        generation: Its own.
        read: The counter `StreamPosition.read` at the downstream's beginning; None where it is not read any more.
        written: The counter `StreamPosition.written` at the upstream's beginning; None but for the leg that is sent on.
        split: A middlebox ACKs on it.
        limit: Downstream offset at which its successor takes over; None for the last.
        handing_over: It has yet to deliver up to there.
        sent_until: Upstream offset at which its successor took over, where it may not all be ACKed.
    """

    generation: int
    read: int | None
    written: int | None
    split: bool
    limit: int | None = None
    handing_over: bool = False
    sent_until: int | None = None


@dataclass(frozen=True, slots=True)
class KeptLeg:
    """A leg with its socket, and where that is."""

    sock: socket.socket
    mark: LegMark
    at: StreamPosition


class KeptStream(LegStream):
    """See the module."""

    peeks = True

    def __init__(
        self, reactor: Reactor, owner: StreamOwner, sweep: Sweep, budget: ByteBudget | None, ring: RingRetention
    ) -> None:
        super().__init__(reactor, owner, sweep, budget)
        self._ring = ring
        self._out = Outbound(budget, ring)
        self._noted: tuple[int, ...] | None = None
        self.on_legs: Callable[[], None] = lambda: (
            None
        )  # called before a reconnect, and when it is known what it led to
        self.on_leg_closed: Callable[[int], None] = lambda generation: None

    def marks(self) -> list[KeptLeg] | None:
        """The legs, the one that is sent on last; None while it is not known which of them carry."""
        if self._known() is None:
            return None
        chain = {link.generation: link for link in self._chain.links()}
        found = []
        try:
            for generation, leg in self._legs.items():
                at, link = stream_position(leg.sock), chain.get(generation)
                mark = LegMark(
                    generation,
                    read=None if link is None else at.read - link.position,
                    written=at.written - self._out.sent_now if leg is self._out.leg else None,
                    split=leg.split,
                    limit=None if link is None else link.limit,
                    handing_over=link is not None and link.handing_over,
                    sent_until=leg.sent_until if leg in self._out.tails else None,
                )
                found.append(KeptLeg(leg.sock, mark, at))
        except OSError:
            return None
        return sorted(found, key=lambda each: each.mark.generation)

    def resume(self, position: int, legs: list[KeptLeg]) -> None:
        """Go on where another process was: `position` bytes were read; the ring is in its state already."""
        chain: list[ChainLink] = []
        tails: list[Leg] = []
        for each in legs:
            mark = each.mark
            if mark.read is not None:
                chain.append(ChainLink(mark.generation, each.at.read - mark.read, mark.limit, mark.handing_over))
            begins_at = max([self._ring.base, *(tail.sent_until for tail in tails)])
            leg = Leg(each.sock, mark.generation, begins_at=begins_at, fin_sent=each.at.fin_sent, split=mark.split)
            leg.handed_over = each is not legs[-1]
            self._legs[mark.generation] = leg
            if mark.sent_until is not None:
                leg.sent_until = mark.sent_until
                tails.append(leg)
        self._chain.restore(position, chain)
        if not legs:
            self._out.begins_anew()
            return
        self._out.resume_on(self._legs[legs[-1].mark.generation], tails)
        self._noted = self._known()
        for leg in self._legs.values():
            self._reactor.watch(leg.sock.fileno(), functools.partial(self._on_events, leg))
        if len(legs) > 1:
            self._watch_handover()
        self._reactor.call_soon(self._drop_exhausted)
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
        first_flight: int = 0,
    ) -> None:
        super().send_on(
            sock,
            generation,
            begins_at,
            overhead=overhead,
            preface=preface,
            handover=handover,
            split=split,
            first_flight=first_flight,
        )
        self._reactor.call_soon(self._note)

    def receive_on(
        self, sock: socket.socket, generation: int, begins_at: int, early: bytes = b"", *, handover: bool = False
    ) -> None:
        super().receive_on(sock, generation, begins_at, early, handover=handover)
        self._reactor.call_soon(self._note)

    def close(self) -> None:
        self.on_legs = lambda: None
        super().close()

    def _close(self, leg: Leg) -> None:
        super()._close(leg)
        # In the next turn: the session has to know first which leg carries it now.
        self._reactor.call_soon(self._note)
        self._reactor.call_soon(functools.partial(self._tell_closed, leg.generation))

    def _tell_closed(self, generation: int) -> None:
        self.on_leg_closed(generation)

    def _known(self) -> tuple[int, ...] | None:
        """The generations of the legs, where all of them carry; None while a reconnect is under way, or none does."""
        leg = self._out.leg
        if leg is None or self._out.frozen or any(each.failed for each in self._legs.values()):
            return None
        newest = max(self._legs, default=0)
        carries = {link.generation for link in self._chain.links()} | {each.generation for each in self._out.tails}
        if leg.generation != newest or self._chain.newest != newest or not carries.issuperset(self._legs):
            return None
        return tuple(sorted(self._legs))

    def _note(self) -> None:
        known = self._known()
        if known != self._noted:
            self._noted = known
            self.on_legs()


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
