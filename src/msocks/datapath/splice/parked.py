"""A session whose mobile leg is gone: what its server sends meanwhile is held, and the server is woken afterwards.

Nothing that the mobile has not received is ever acknowledged: what is held here are copies, and their loss costs time
alone. A server that has sent into an outage waits for its retransmission time-out, which doubles each time. It need
not, once it learns what is missing. So a later leg begins with three things:

- the ACK of D, with the window of the leg before, whereupon a Linux server sends some new segments;
- a selective acknowledgment (RFC 2018) of one of these, which this host holds and delivers: the server sees at once
  that everything before is lost (RFC 8985), and sends a first flight of it again;
- what the server had sent again during the outage, if it belongs at the beginning of the leg. Its timestamp is moved
  on by the time that it was held, or the server would take the outage for a round trip.

What was held for long and sent only once is not delivered: its ACK would be a round trip as long as the outage, and to
a server that has had a time-out it would say that this was spurious (RFC 5682 section 3.1, step 3b). Linux takes back
then what it took for lost, and does not find all of that again: the rest waits for the next time-out.

If what the server has sent again lies before D, it must not take its time-out for spurious either, as Linux does at an
ACK of more than that (RFC 5682): it would believe that all is still on the way, and wait for the next time-out. So it
hears first the ACK of what it has sent again, with a window that leaves no room for anything new, and sends the rest.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from msocks.datapath.splice.events import HeldPacket
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import NO_FIN, SERVER, LegFlag, Session, SessionFlag
from msocks.datapath.splice.residual import Residual
from msocks.datapath.splice.segments import FIN
from msocks.datapath.splice.speech import say

MOST_SEGMENTS = 64
"""Of one session."""
MOST_BYTES = 16 << 20
"""Of all sessions of a proxy; what comes beyond is not held."""

_WORD = 0xFFFFFFFF
_TICK_S = 0.01
_AGAIN_S = 0.3
_LONGEST_S = 30.0
_SILENT_NS = 1_000_000_000
_GONE_NS = 24 * 3600 * 1_000_000_000
_STALE_S = 0.3
_FIRST_FLIGHT = 32 << 10  # bytes: half of what a handover begins with, since this comes all at once, from a standstill


@dataclass(slots=True)
class _Segment:
    offset: int
    payload: bytes
    tsval: int
    arrived_ns: int
    again: bool = False  # the server has sent it more than once
    said_at: float | None = None

    @property
    def end(self) -> int:
        return self.offset + len(self.payload)


class Parking:
    """See the module; one for each spliced session."""

    __slots__ = (
        "_clock",
        "_has_flown",
        "_loop",
        "_number",
        "_opening",
        "_output",
        "_segments",
        "_session",
        "_since",
        "_timer",
        "_total",
        "_until",
    )

    def __init__(self, host: SpliceHost, session: Session) -> None:
        self._loop = host.reactor.loop
        self._output = host.output
        self._clock = host.residuals
        self._session = session
        self._total = host.held
        self._segments: dict[int, _Segment] = {}
        self._number: int | None = None  # of the leg that takes what is held
        self._since = 0.0
        self._has_flown = False  # the first flight of that leg
        self._until: int | None = None  # the end of what the server had sent again, where the leg begins behind it
        self._timer: asyncio.TimerHandle | None = None
        self._opening: Residual | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the leg that stands has not yet all that its server had sent into an outage."""
        session = self._session
        return bool(session.flags & SessionFlag.RESUMING) or any(
            each.end > session.down.acked for each in self._segments.values()
        )

    def park(self, received: int) -> None:
        """The mobile leg is gone; the mobile's kernel has received the downstream up to `received`."""
        session = self._session
        self._stop()
        session.held = 0
        session.parked_ns = time.monotonic_ns()
        session.flags |= SessionFlag.STOPPED
        if self._acknowledge(received):
            # It still may send as far as the leg's window went: what it sends now is held.
            self._output.send(say(session, SERVER, session.up.acked))

    def prepare(self, begins: int) -> None:
        """A later leg, which begins downstream with the byte `begins`, is about to stand."""
        session = self._session
        self._stop()
        again = self._segments.get(session.down.acked)
        self._until = again.end if again is not None and again.end < begins <= session.down.sent else None
        self._acknowledge(begins)
        session.held = 0
        self._has_flown = False
        for segment in self._segments.values():
            segment.said_at = None
        # Without SACK, a server learns from its mobile's repeated ACKs alone that something is missing.
        if begins < min(session.down.sent, session.down.fin) and session.legs[SERVER].flags & LegFlag.SACK:
            session.flags |= SessionFlag.RESUMING
        else:
            session.flags &= ~SessionFlag.RESUMING

    def announce(self) -> None:
        """That leg stands, and the server is about to hear where it begins."""
        session, until, self._until = self._session, self._until, None
        if until is not None:
            room = max(0, session.down.sent - until)
            self._output.send(say(session, SERVER, session.up.acked, acknowledged=until, window=room))

    def resume(self, number: int) -> None:
        """That leg stands; it is leg `number` of the entry, and the server has heard where it begins."""
        session = self._session
        self._number = number
        self._since = self._loop.time()
        for segment in list(self._segments.values()):
            if segment.end <= session.down.acked or self._is_stale(segment):
                self._drop(segment)
        if session.flags & SessionFlag.CLOSED_WINDOW:
            session.flags &= ~SessionFlag.CLOSED_WINDOW
            self._open_window()
        if session.down.fin != NO_FIN and session.down.acked == session.down.fin:
            # Nothing else is missing: it need not wait until the server says it again.
            self._output.send(say(session, number, session.down.fin, b"", FIN))
        self._report()
        self._deliver()

    def on_held(self, packet: HeldPacket) -> None:
        """The kernel's half has copied a segment."""
        session = self._session
        copied = bytes(packet.packet)[: packet.copied]
        offset, payload = packet.event.offset, copied[packet.headers :]
        if not session.parked_ns and self._is_silent():
            # Nobody has said that the leg is gone, but it looks so: a server that hears this goes on asking.
            session.flags |= SessionFlag.CLOSED_WINDOW
            self._output.send(say(session, SERVER, session.up.acked, window=0))
        if offset + len(payload) <= session.down.acked:
            return
        for first in range(0, len(payload), packet.segment):
            self._hold(
                _Segment(offset + first, payload[first : first + packet.segment], packet.tsval, packet.arrived_ns)
            )
        if self._number is not None and session.flags & SessionFlag.RESUMING:
            self._report()
            self._deliver()

    def close(self) -> None:
        """Hold nothing any more."""
        self._stop()
        for segment in list(self._segments.values()):
            self._drop(segment)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _acknowledge(self, received: int) -> bool:
        """Note what the mobile has; whether that is news. No other offset but one that was sent is believed."""
        down = self._session.down
        if not down.acked < received <= min(down.sent, down.fin):
            return False
        down.acked = received
        return True

    def _stop(self) -> None:
        self._number = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def _drop(self, segment: _Segment) -> None:
        del self._segments[segment.offset]
        self._total.held -= len(segment.payload)

    def _open_window(self) -> None:
        """The server believes that the mobile takes nothing, until it hears otherwise (RFC 9293 section 3.8.6.1)."""
        session, packets = self._session, self._session.down.packets

        def again() -> None:
            self._output.send(say(session, SERVER, session.up.acked))

        def over(_residual: Residual) -> None:
            self._opening = None

        again()
        self._opening = Residual(self._clock, again, lambda: bool(session.down.packets != packets), over, timeout_s=0)

    def _is_stale(self, segment: _Segment) -> bool:
        """Whether its ACK would tell the server of the outage; one at D has been sent again, if that was long."""
        if segment.again or segment.offset == self._session.down.acked:
            return False
        limit_s = max(_STALE_S, 2 * self._session.legs[self._number or 0].round_trip_ms / 1000)
        return time.monotonic_ns() - segment.arrived_ns > limit_s * 1e9

    def _hold(self, segment: _Segment) -> None:
        known = self._segments.get(segment.offset)
        if known is not None:
            if known.said_at is not None:
                return
            self._drop(known)
            segment.again = True
        if len(self._segments) >= MOST_SEGMENTS:
            for old in [each for each in self._segments.values() if each.end <= self._session.down.acked]:
                self._drop(old)
        if segment.offset == self._session.down.acked and len(self._segments) >= MOST_SEGMENTS:
            self._drop(self._segments[max(self._segments)])  # without the first, no other is of use
        if len(self._segments) < MOST_SEGMENTS and self._total.held + len(segment.payload) <= MOST_BYTES:
            self._segments[segment.offset] = segment
            self._total.held += len(segment.payload)

    def _report(self) -> None:
        """Tell the server that what is held has come out of order: the newest of it, as far as it hangs together."""
        session = self._session
        if not session.legs[SERVER].flags & LegFlag.SACK:
            return
        beyond = sorted((each.offset, each.end) for each in self._segments.values() if each.offset > session.down.acked)
        if not beyond:
            return
        first, end = beyond.pop()
        while beyond and beyond[-1][1] >= first:
            first = beyond.pop()[0]
        window = min(session.mobile_edge - session.down.acked, _FIRST_FLIGHT)
        if session.down.acked == 0 or window <= 0 or not session.flags & SessionFlag.RESUMING:
            self._output.send(say(session, SERVER, session.up.acked, sack=(first, end)))
            return
        if not self._has_flown:
            self._has_flown = True
            self._let_fly(window, (first, end))
        self._output.send(say(session, SERVER, session.up.acked, window=window, sack=(first, end)))

    def _let_fly(self, window: int, held: tuple[int, int]) -> None:
        """Let the server send a first flight again at once, and not only as much as is held.

        At an ACK that reports something, Linux sets its congestion window to hardly more than that (RFC 6937); but of
        one that is behind an earlier one, as a reordered ACK is, it takes the report alone. Then the offered window is
        the limit. It believes an ACK that repeats itself only when its window grows or is zero.
        """
        session = self._session
        for room in (0, window):
            self._output.send(say(session, SERVER, session.up.acked, window=room))
        late = session.down.acked - 1
        self._output.send(say(session, SERVER, session.up.acked, acknowledged=late, window=window + 1, sack=held))

    def _deliver(self) -> None:
        """Say what is held and fits into the mobile's window, until it is acknowledged."""
        self._timer = None
        session, number, now = self._session, self._number, self._loop.time()
        if number is None:
            return
        for segment in sorted(self._segments.values(), key=lambda each: each.offset):
            if segment.end <= session.down.acked:
                self._drop(segment)
            elif segment.end <= session.mobile_edge and (segment.said_at is None or now - segment.said_at > _AGAIN_S):
                self._set_clock(segment)
                segment.said_at = now
                self._output.send(say(session, number, segment.offset, segment.payload))
        if self._segments and now - self._since < _LONGEST_S:
            self._timer = self._loop.call_later(_TICK_S, self._deliver)

    def _is_silent(self) -> bool:
        """Whether the leg that should carry has said nothing for long."""
        active = self._session.active
        heard_ns = self._session.legs[active].ts_in_at if active != SERVER else 0
        return heard_ns != 0 and _SILENT_NS < time.monotonic_ns() - heard_ns < _GONE_NS

    def _set_clock(self, segment: _Segment) -> None:
        """As if the server had sent it now, and did so at the other end of the splice as well."""
        leg, server = self._session.legs[self._number or 0], self._session.legs[SERVER]
        if not leg.flags & LegFlag.TIMESTAMPS:
            return
        now = time.monotonic_ns()
        tsval = segment.tsval + max(0, now - segment.arrived_ns) // 1_000_000 & _WORD
        if not leg.flags & LegFlag.SHIFT_OUT_SET:
            leg.shift_out = leg.ts_out + max(0, now - leg.ts_out_at) // 1_000_000 - tsval & _WORD
            leg.flags |= LegFlag.SHIFT_OUT_SET
        leaves = tsval + leg.shift_out & _WORD
        if _later(leaves, leg.ts_out):
            leg.ts_out, leg.ts_out_at = leaves, now
        if _later(tsval, server.ts_in):
            server.ts_in, server.ts_in_at = tsval, now


def _later(one: int, other: int) -> bool:
    return 0 < (one - other & _WORD) < 1 << 31
