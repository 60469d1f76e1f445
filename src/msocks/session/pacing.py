"""How fast to send on a leg that has just replaced another, so that its link's queue does not overflow; sans-IO.

A new leg knows nothing of its link. TCP finds the link's rate by sending faster and faster until the queue in front of
it is full and packets are lost, and a loss costs a round trip of silence, the full queue's delay included: a transfer
that moved without a pause stalls a second later. So, for a while after a move, the sender is paced: as soon as bytes
wait in a queue, which the round-trip time shows, it sends as fast as bytes are seen to arrive, a little less while the
queue is longer than it should be, a little more while it is shorter. The link stays busy and its queue short.

It is for a while only. Whoever avoids a full queue gets less and less of a link that he shares with connections that
fill it, which all others do. For the same reason it ends at once where the queue stays although the sender has slowed
down: then it is somebody else's. A leg whose round-trip time does not grow is never slowed.

Rates are bytes per second, times seconds of one monotonic clock, which the caller reads.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

LASTS_S = 10.0
"""From the leg's beginning. TCP on its own, with nothing known, takes one to two seconds to fill a queue of 100 ms."""
QUEUE_S = 0.015
"""More than this in the queue, and pacing begins. A fat queue holds 100 ms and more, jitter is mostly below this."""
TARGET_S = 0.010
DRAIN_S = 0.25
"""What is in the queue beyond the target is to be gone in so long."""
SLOWEST = 0.75
FASTEST = 1.1
"""Of what arrives. With an empty queue that is what was sent, so that an estimate which was too low grows."""
NOT_OURS_S = 1.5
"""A queue that has not drained in so long is not the sender's."""
INTERVAL_LEAST_S = 0.05
INTERVAL_MOST_S = 0.2
"""Between two looks: a round trip or so."""
_REMEMBERED = 3  # intervals; arrivals come in lumps, and the highest of a few rates is the link's
_LEAST_WINDOW_BYTES = 5_840  # four segments: with less in each round trip, the first loss would cost a time-out


@dataclass(frozen=True, slots=True)
class Flight:
    """What the kernel knows of a leg at one moment.

    Attributes:
        at: The time.
        acknowledged: Bytes that the peer has ACKed since the leg's beginning.
        waiting: Whether the kernel holds bytes that it has not sent yet: else the program is what limits the rate.
        rtt_s: Smoothed round-trip time.
        rtt_least_s: The lowest one: with empty queues.
    """

    at: float
    acknowledged: int
    waiting: bool
    rtt_s: float
    rtt_least_s: float


class Pacing:
    """The pace of one leg. Feed it with `advance`, about every `interval_s`, as long as something is sent.

    Attributes:
        rate: What to send at most; None: as fast as TCP by itself.
        over: Whether nothing will change any more.
    """

    def __init__(self, began: float) -> None:
        self.rate: float | None = None
        self.over = False
        self._ends = began + LASTS_S
        self._last: Flight | None = None
        self._arrivals: deque[float] = deque(maxlen=_REMEMBERED)
        self._queued_since: float | None = None

    @property
    def interval_s(self) -> float:
        """When to look again."""
        rtt_s = self._last.rtt_s if self._last is not None else 0.0
        return min(max(rtt_s, INTERVAL_LEAST_S), INTERVAL_MOST_S)

    def advance(self, flight: Flight) -> None:
        """Draw the conclusions."""
        last, self._last = self._last, flight
        if flight.at >= self._ends:
            self._end()
        if self.over:
            return
        if last is None or not (last.waiting and flight.waiting) or flight.at <= last.at:
            self._arrivals.clear()
            self._queued_since = None
            return
        self._arrivals.append((flight.acknowledged - last.acknowledged) / (flight.at - last.at))
        queue_s = max(0.0, flight.rtt_s - flight.rtt_least_s)
        if queue_s <= QUEUE_S:
            self._queued_since = None
            if self.rate is None:
                return
        elif self._queued_since is None:
            self._queued_since = flight.at
        elif flight.at - self._queued_since >= NOT_OURS_S:
            self._end()
            return
        share = min(max(1.0 + (TARGET_S - queue_s) / DRAIN_S, SLOWEST), FASTEST)
        if queue_s < TARGET_S / 2:
            share = FASTEST
        least = _LEAST_WINDOW_BYTES / max(flight.rtt_s, INTERVAL_LEAST_S)
        self.rate = max(share * max(self._arrivals), least)

    def _end(self) -> None:
        self.over = True
        self.rate = None
