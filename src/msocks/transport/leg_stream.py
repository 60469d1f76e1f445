"""One byte stream in each direction, carried by a chain of legs: the same at both ends of a mobile leg.

Outbound, bytes are retained until the peer's kernel has ACKed them, so that a new leg can begin anywhere from there.
Inbound, the legs are drained in generation order, so that what a dead leg had received is read before its successor.
The stream outlives its legs; when the last one is lost it simply waits for the next.

A leg can be replaced by a takeover (the old one carries nothing more; the new one begins where the old one's ACKs
ended) or by a handover (both carry: what was sent on the old leg arrives on it, the new one begins behind that). A
handover that does not come to its end, because the old leg dies or falls silent, is mended by a takeover: the side that
opens legs notices (its own bytes are not ACKed, or the other's do not come), and both have kept everything.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from msocks.session.byte_budget import ByteBudget
from msocks.session.leg_chain import LegChain
from msocks.transport.handover_watch import HandoverWatch
from msocks.transport.leg import Leg
from msocks.transport.leg_pacer import LegPacer
from msocks.transport.outbound import Outbound
from msocks.transport.outbound_progress import OutboundProgress
from msocks.transport.reactor import READABLE, WRITABLE, Reactor
from msocks.transport.stream_owner import StreamOwner
from msocks.transport.sweep import Sweep


class LegStream(OutboundProgress):
    """See the module. Not thread-safe; all calls from the reactor's thread."""

    peeks = False  # what `read` gives stays in the leg's kernel: see `KeptStream.consume`

    def __init__(self, reactor: Reactor, owner: StreamOwner, sweep: Sweep, budget: ByteBudget | None = None) -> None:
        """What the stream holds counts in `budget`."""
        self._reactor = reactor
        self._owner = owner
        self._sweep = sweep
        self._legs: dict[int, Leg] = {}
        self._chain = LegChain()
        self._out = Outbound(budget)
        self._handover_watch: HandoverWatch | None = None
        self._pacer: LegPacer | None = None  # of a leg that has replaced another
        self._full = False  # the writer was told to wait
        self._eof = False
        self._end_at: int | None = None
        self._told_acknowledged = False
        self.watches_handovers = False  # only the side that opens legs can mend a handover that breaks off
        self.on_sent: Callable[[], None] | None = None  # whoever watches over the path hears of every flight

    def begin_at(self, received: int, arrived: int, sent: int) -> None:
        """Go on with streams that were carried otherwise so far: see `Outbound.begin_at`. Before the first leg."""
        self._chain.position = received
        self._out.begin_at(arrived, sent)

    @property
    def position(self) -> int:
        """Inbound bytes handed to the reader."""
        return self._chain.position

    @property
    def writable(self) -> bool:
        """Whether the writer should go on."""
        return self._out.room > 0

    def ask_for_room(self, wanted: int) -> int:
        """How many of `wanted` bytes the writer should write now; where 0, `on_writable` comes when there is room."""
        room = self._out.room
        if not room:
            self._full = True
            if self._out.waits_for_budget:
                self._sweep.hurry(self)  # nobody tells of ACKs, nor of what others give back
        return min(wanted, room)

    @property
    def finishing(self) -> bool:
        """Whether the writer has ended its direction."""
        return self._out.finishing

    @property
    def at_eof(self) -> bool:
        """Whether the peer has ended its direction and all of it was read."""
        return self._eof

    @property
    def handing_over(self) -> bool:
        """Whether a replaced leg still has to deliver, in either direction."""
        return self._out.handing_over or self._chain.awaits_handover(self._unread)

    @property
    def live_socket(self) -> socket.socket | None:
        """The socket of the leg that sends now."""
        leg = self._out.leg
        return leg.sock if leg is not None and not leg.failed else None

    def received(self) -> int:
        """Inbound bytes in this side's kernel or already read: R at the mobile node, U at the proxy."""
        return self._chain.received(self._unread)

    def acknowledged(self) -> int:
        """Outbound bytes that the peer's kernel has ACKed; everything before is (or may be) forgotten."""
        self._close_done(self._out.release())
        return self._out.base

    def sends_on(self, generation: int) -> bool:
        """Whether the leg of `generation` is the one that sends."""
        return self._out.leg is not None and self._out.leg.generation == generation

    def freeze(self) -> int:
        """Stop forgetting what is ACKed, for as long as a reconnect is under way; returns the basepoint for it."""
        basepoint = self.acknowledged()
        self._out.frozen = True
        return basepoint

    def thaw(self) -> None:
        """The reconnect did not happen: forget again what the present leg's peer ACKs, and go on sending on it."""
        self._out.frozen = False
        self.flush()

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
        """Send on a new leg, from stream offset `begins_at`; nothing more is sent on the leg before.

        `overhead` bytes were already written to the socket (a request), `preface` is written before the stream (a
        reply). With `handover` the leg before delivers what it has taken, which ends at `begins_at` (see `sent_now`).
        With `split` a middlebox ACKs on the leg, and `confirm` tells what has arrived. With `first_flight` only so many
        bytes are sent before `go_on`. Raises ValueError when `begins_at` is not retained.
        """
        self._out.check(begins_at)
        leg = self._legs.setdefault(generation, Leg(sock, generation))
        if self._legs.keys() - {generation} or begins_at:
            self._pacer = LegPacer(self._reactor.loop, sock)
        self._close_done(
            self._out.replace(leg, begins_at, overhead, handover=handover, split=split, first_flight=first_flight)
        )
        if handover:
            self._watch_handover()
        if preface:
            # A fresh leg has an empty send buffer, which takes a reply whole; if not, the leg is dead already.
            try:
                leg.overhead += sock.send(preface)
            except OSError as error:
                self._fail(leg, error)
                return
        self.flush()

    def go_on(self, begins_at: int) -> None:
        """What follows the first flight of the leg that sends now, whose bytes count from `begins_at` on."""
        self._out.go_on(begins_at)
        self.flush()

    def resume_sending(self, generation: int) -> bool:
        """Go back to an earlier leg after an attempt that came to nothing; False when that leg is gone."""
        leg = self._legs.get(generation)
        if leg is None or leg.failed:
            return False
        self._close_done(self._out.resume(leg))
        self.flush()
        return True

    def stop_sending(self) -> None:
        """The leg that sends now sends nothing more."""
        self._close_done(self._out.stop())

    def pause_sending(self) -> None:
        """Send nothing new on the leg that sends now, until the next `send_on` or `resume_sending`; it stays alive."""
        self._out.paused = True

    def receive_on(
        self, sock: socket.socket, generation: int, begins_at: int, early: bytes = b"", *, handover: bool = False
    ) -> None:
        """Read from a new leg, whose first byte is at stream offset `begins_at`; `early` was already read from it.

        With `handover` the bytes before are still to come on the present leg. Without, raises StreamGapError when the
        earlier legs cannot supply them; the stream is useless then.
        """
        newest = self._chain.newest
        gone = self._chain.add(generation, begins_at, self._unread, handover=handover)
        self._close_done([self._legs[each] for each in gone])
        leg = self._legs.setdefault(generation, Leg(sock, generation))
        leg.early = early
        self._out.frozen = False
        if handover and newest is not None:
            self._legs[newest].handed_over = True
            self._watch_handover()
        self._drop_exhausted()
        self._reactor.watch(sock.fileno(), lambda events: self._on_events(leg, events))
        if leg.early:
            self._reactor.call_soon(self._notify_readable)
        if leg.failed:  # while only the request had been answered; nobody was told then
            lost = ConnectionResetError(errno.ECONNRESET, "the leg was reset")
            self._reactor.call_soon(lambda: self._owner.on_leg_lost(generation, lost))

    def break_handover(self) -> None:
        """The old leg does not deliver what the new one counts on: wait for a takeover.

        Every leg stays until then. What its kernel has ACKed the peer may have let go of, and what still comes on the
        old leg may yet close the gap: only the takeover's basepoints say what is not needed any more.
        """
        newest = self._chain.newest
        self.stop_sending()
        if newest is not None:
            self._owner.on_leg_lost(newest, ConnectionResetError(errno.ECONNRESET, "the old leg did not hand over"))

    def forget_leg(self, generation: int) -> None:
        """Close a leg that was only sent on (an attempt that came to nothing)."""
        leg = self._legs.pop(generation, None)
        if leg is not None:
            self._out.forget(leg)
            self._close(leg)

    def close(self) -> None:
        """Close every leg (with RST, where data or a FIN is outstanding) and forget all bytes."""
        self._sweep.discard(self)
        legs, self._legs = self._legs, {}
        for leg in legs.values():
            self._out.forget(leg)
            self._close(leg)
        self._out.discard()

    def write(self, data: bytes) -> None:
        """Append to the outbound stream and send what the leg takes. Never blocks, never fails: see `writable`."""
        self._out.append(data)
        self.flush()
        self._full = not self.writable

    def finish(self) -> None:
        """End the outbound direction: a FIN follows the last byte, on this leg and on every later one."""
        if not self._out.finishing:
            self._out.finishing = True
            self.flush()

    def read(self, at_most: int) -> bytes | None:
        """Up to `at_most` inbound bytes; b"" at the end of the stream, None when there is nothing now.

        Raises StreamGapError when a replaced leg ended before the bytes that only it had.
        """
        while not self._eof:
            if self._chain.position == self._end_at:
                self._eof = True
                break
            reading = self._chain.next_reading()
            if reading is None:
                return None
            leg = self._legs[reading.generation]
            wanted = reading.discard or (at_most if reading.at_most is None else min(at_most, reading.at_most))
            try:
                data = leg.receive(wanted) if reading.discard or not self.peeks else leg.peek(wanted)
            except OSError as error:
                self._end_of_leg(leg, error)
                return None
            if data is None:
                return None
            if data:
                if self.peeks and not reading.discard:
                    return data
                self._chain.took(len(data))
                if not self._chain.first_is_last:
                    self._drop_exhausted()
                if not reading.discard:
                    return data
            elif leg.failed or leg.handed_over or not self._chain.first_is_last:
                self._end_of_leg(leg, ConnectionResetError(errno.ECONNRESET, "the leg was reset"))
                return None
            else:
                self._eof = True
        return b""

    def confirm_end(self, offset: int) -> None:
        """The inbound stream ends at `offset`: authenticated word of the peer, for a FIN that an RST overtook."""
        self._end_at = offset
        self._reactor.call_soon(self._notify_readable)

    def flush(self) -> None:
        """Send what the leg takes now. For whoever watches a leg that is sent on and not yet received on."""
        leg = self._out.leg
        if leg is None:
            return
        try:
            sent = self._out.push()
        except OSError as error:
            self._fail(leg, error)
            return
        if sent:
            if self.on_sent is not None:
                self.on_sent()
            if self._pacer is not None:
                self._pacer.on_sent()
        self._close_done(self._out.release_when_due())
        if self._out.outstanding:
            self._sweep.add(self)
        self._tell_writable()

    def sweep(self) -> bool:
        """Forget what was ACKed meanwhile; False when there is nothing left to look after (for Sweep)."""
        self._close_done(self._out.release())
        self._tell_writable()
        if not self._told_acknowledged and self._out.all_acknowledged():
            self._told_acknowledged = True
            self._owner.on_acknowledged()
        return self._out.outstanding and not self._told_acknowledged

    # -- inside -----------------------------------------------------------------------------------------------------

    def _tell_writable(self) -> None:
        if self._full and self.writable:
            self._full = False
            self._owner.on_writable()

    def _on_events(self, leg: Leg, events: int) -> None:
        error = leg.note(events)
        if error is not None:
            self._fail(leg, error)
        if events & WRITABLE and leg is self._out.leg:
            self.flush()
            if self._out.finishing:
                self.sweep()
        if events & READABLE:
            if self._eof:
                leg.discard()
            else:
                self._owner.on_readable()

    def _notify_readable(self) -> None:
        if self._legs:
            self._owner.on_readable()

    def _end_of_leg(self, leg: Leg, error: OSError) -> None:
        if self._chain.first_is_last or self._chain.handing_over:
            self._fail(leg, error)
        else:
            raise self._chain.gap()

    def _fail(self, leg: Leg, error: OSError) -> None:
        self._close_done(self._out.release())
        tail = leg is not self._out.leg and self._out.uses(leg)
        hands_over = tail or (self._chain.handing_over and self._chain.first == leg.generation)
        if not leg.failed:
            leg.failed = True
            if leg is self._out.leg:
                self.stop_sending()
            if leg.generation == self._chain.newest:
                self._owner.on_leg_lost(leg.generation, error)
                return
        if hands_over and self.watches_handovers and leg.receive_is_empty():
            self.break_handover()

    def _watch_handover(self) -> None:
        if self.watches_handovers:
            if self._handover_watch is None:
                self._handover_watch = HandoverWatch(self._reactor, self._handover_progress, self.break_handover)
            self._handover_watch.begin()

    def _handover_progress(self) -> int | None:
        if not self._legs:
            return None
        progress = self.acknowledged() + self.received()
        return progress if self.handing_over else None

    def _drop_exhausted(self) -> None:
        self._close_done([self._legs[generation] for generation in self._chain.exhausted()])

    def _close_done(self, legs: list[Leg]) -> None:
        """Close those of the legs that are neither read, nor sent on, nor wait for ACKs."""
        for leg in legs:
            if not self._out.uses(leg) and not self._chain.has(leg.generation):
                self._legs.pop(leg.generation, None)
                self._close(leg)

    def _unread(self, generation: int) -> int:
        return self._legs[generation].unread()

    def _close(self, leg: Leg) -> None:
        self._reactor.unwatch(leg.sock.fileno())
        leg.close()
