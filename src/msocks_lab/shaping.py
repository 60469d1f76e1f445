"""One direction of an emulated link, without input, output or a clock: packets and times in, packets out.

A packet first waits in a drop-tail queue for the serialiser, which takes its length divided by the rate, and then
travels for the delay. Both together are known when it arrives, so every packet gets its time of delivery at once.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass

from msocks_lab.config import Shape


@dataclass(slots=True)
class PipeCounters:
    """What happened to the packets of one direction. `dropped_cut` counts what met a cut, queued packets included."""

    offered: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    dropped_loss: int = 0
    dropped_queue: int = 0
    dropped_cut: int = 0
    duplicated: int = 0
    reordered: int = 0


class Pipe:
    """See the module. Times are seconds of one monotonic clock, and never run backwards from call to call."""

    def __init__(self, shape: Shape, seed: str) -> None:
        self.counters = PipeCounters()
        self._random = random.Random(seed)
        self._cut = False
        self._in_order: deque[tuple[float, float, bytes]] = deque()  # (delivery, end of serialising, packet)
        self._held_back: list[tuple[float, int, bytes]] = []  # heap of (delivery, tie-breaker, packet)
        self._serialiser_free = 0.0
        self._last_delivery = 0.0
        self._adopt(shape)

    def _adopt(self, shape: Shape) -> None:
        self.shape = shape
        rate = shape.bytes_per_second
        self._seconds_per_byte = 0.0 if rate is None else 1.0 / rate
        self._longest_wait = math.inf if rate is None else shape.queue_limit / rate
        self._delay = shape.delay_ms / 1000.0
        self._chancy = bool(
            shape.loss_percent or shape.duplicate_percent or shape.reorder_percent or shape.jitter_ms,
        )

    def offer(self, packet: bytes, now: float) -> None:
        """A packet has arrived at the sender's end."""
        counters = self.counters
        counters.offered += 1
        if self._cut:
            counters.dropped_cut += 1
            return
        start = self._serialiser_free
        serialising = len(packet) * self._seconds_per_byte
        if start <= now:
            start = now
        elif start - now + serialising > self._longest_wait:
            counters.dropped_queue += 1
            return
        if self._chancy:
            self._offer_with_luck(packet, start, serialising)
            return
        finished = self._serialiser_free = start + serialising
        delivery = finished + self._delay
        if delivery < self._last_delivery:
            delivery = self._last_delivery
        else:
            self._last_delivery = delivery
        self._in_order.append((delivery, finished, packet))

    def _offer_with_luck(self, packet: bytes, start: float, serialising: float) -> None:
        shape, chance = self.shape, self._random.random
        # Lost packets have taken their time on the wire: it is the medium that loses them, not the queue.
        finished = self._serialiser_free = start + serialising
        if shape.loss_percent and chance() * 100.0 < shape.loss_percent:
            self.counters.dropped_loss += 1
            return
        delivery = finished + self._delay + chance() * shape.jitter_ms / 1000.0
        if shape.reorder_percent and chance() * 100.0 < shape.reorder_percent:
            self.counters.reordered += 1
            heapq.heappush(self._held_back, (delivery + shape.reorder_ms / 1000.0, self.counters.offered, packet))
            return
        self._last_delivery = delivery = max(delivery, self._last_delivery)
        self._in_order.append((delivery, finished, packet))
        if shape.duplicate_percent and chance() * 100.0 < shape.duplicate_percent:
            self.counters.duplicated += 1
            self._in_order.append((delivery, finished, packet))

    @property
    def next_delivery(self) -> float:
        """When `take` next has something to give, infinite when the pipe is empty."""
        first = self._in_order[0][0] if self._in_order else math.inf
        return min(first, self._held_back[0][0]) if self._held_back else first

    def take(self, now: float) -> bytes | None:
        """The next packet due by `now`, or None. Each call gives one."""
        in_order, held_back = self._in_order, self._held_back
        if held_back and held_back[0][0] <= now and (not in_order or held_back[0][0] < in_order[0][0]):
            packet = heapq.heappop(held_back)[2]
        elif in_order and in_order[0][0] <= now:
            packet = in_order.popleft()[2]
        else:
            return None
        self.counters.delivered += 1
        self.counters.delivered_bytes += len(packet)
        return packet

    def reshape(self, shape: Shape, now: float) -> None:
        """Change all properties at once.

        What waits for the serialiser goes on at the new rate and with the new delay; what already travels arrives as
        it would have, and nothing overtakes it. A queue that is too long for its new limit is not thrown away.
        """
        old_seconds_per_byte = self._seconds_per_byte
        self._adopt(shape)
        travelling: list[tuple[float, float, bytes]] = []
        waiting: list[tuple[float, float, bytes]] = []
        for entry in self._in_order:
            (waiting if entry[1] > now else travelling).append(entry)
        self._in_order = deque(travelling)
        self._last_delivery = travelling[-1][0] if travelling else 0.0
        finished = now
        for index, (_, old_finish, packet) in enumerate(waiting):
            left = float(len(packet))
            if index == 0 and old_seconds_per_byte:
                left = min(left, (old_finish - now) / old_seconds_per_byte)
            finished += left * self._seconds_per_byte
            self._last_delivery = max(finished + self._delay, self._last_delivery)
            self._in_order.append((self._last_delivery, finished, packet))
        self._serialiser_free = finished

    def cut(self, cut: bool) -> None:
        """Throw away everything, what is under way included, from now on; or stop doing so."""
        self._cut = cut
        if cut:
            self.counters.dropped_cut += len(self._in_order) + len(self._held_back)
            self._in_order.clear()
            self._held_back.clear()
            self._serialiser_free = self._last_delivery = 0.0
