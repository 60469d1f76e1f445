"""Which leg the next byte of a stream comes from: legs form a chain, drained in generation order.

A leg that has been replaced may still hold bytes that its kernel ACKed and nobody has read. The sender has forgotten
them, so no later leg repeats them; they are read first. Where a later leg repeats bytes that an earlier one supplied,
the repetition is discarded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


class StreamGapError(Exception):
    """A new leg begins beyond what the earlier legs can supply: bytes were ACKed and then lost on the way.

    It takes a middlebox that ACKs for the mobile (or a peer that lies) to cause it. The session must end loudly.
    """

    def __init__(self, available: int, begins_at: int) -> None:
        super().__init__(
            f"the new leg begins at byte {begins_at}, but the earlier ones supply only the first {available}: "
            "something between the two ends acknowledged bytes and then lost them"
        )
        self.available = available
        self.begins_at = begins_at


@dataclass(frozen=True, slots=True)
class Reading:
    """What to do next: read from the leg of `generation`; if `discard` is not 0, drop that many bytes of it first.

    `at_most` bounds the read, None means that the leg is the last one and has no bound.
    """

    generation: int
    discard: int
    at_most: int | None


@dataclass(slots=True)
class _Member:
    generation: int
    position: int  # stream offset of the next byte that this leg's socket will give
    limit: int | None = None  # stream offset at which its successor takes over


class LegChain:
    """Positions of the legs of one stream in one direction; all offsets absolute, in bytes."""

    __slots__ = ("_members", "position")

    def __init__(self) -> None:
        self.position = 0  # offset of the next byte that the reader has not got yet
        self._members: deque[_Member] = deque()

    @property
    def newest(self) -> int | None:
        """Generation of the last leg, None before the first."""
        return self._members[-1].generation if self._members else None

    def received(self, unread: int) -> int:
        """Bytes of the stream that this side's kernel has, `unread` of them unread in the last leg."""
        if not self._members:
            return self.position
        last = self._members[-1]
        promised = self._members[-2].limit if len(self._members) > 1 else None
        return max(self.position, promised or 0, last.position + unread)

    def add(self, generation: int, begins_at: int, unread_of_last: int) -> None:
        """A new leg whose first byte is at offset `begins_at`. Later bytes of the present last leg are not used.

        Raises StreamGapError when the earlier legs cannot supply the bytes before `begins_at`, ValueError when
        `generation` does not increase; nothing has changed then.
        """
        if self._members and generation <= self._members[-1].generation:
            raise ValueError(f"generation {generation} does not follow {self._members[-1].generation}")
        received = self.received(unread_of_last)
        if begins_at > received:
            raise StreamGapError(received, begins_at)
        if self._members:
            self._members[-1].limit = received
        self._members.append(_Member(generation, begins_at))

    def exhausted(self) -> list[int]:
        """Generations that have nothing more to give; they leave the chain and may be closed."""
        gone = []
        while len(self._members) > 1:
            first = self._members[0]
            assert first.limit is not None  # only the last member has none
            if max(first.position, self.position) < first.limit:
                break
            gone.append(self._members.popleft().generation)
        return gone

    def next_reading(self) -> Reading | None:
        """Where the next bytes come from; None while there is no leg. Call after :meth:`exhausted`."""
        if not self._members:
            return None
        first = self._members[0]
        discard = max(0, self.position - first.position)
        at_most = None if first.limit is None else first.limit - first.position - discard
        return Reading(first.generation, discard, at_most)

    def took(self, count: int) -> None:
        """`count` bytes were read from the first leg; what repeated earlier bytes was discarded."""
        first = self._members[0]
        first.position += count
        self.position = max(self.position, first.position)

    def gap(self) -> StreamGapError:
        """The first leg ended before its limit: what to raise."""
        first = self._members[0]
        assert first.limit is not None  # the last leg has no limit to miss
        return StreamGapError(first.position, first.limit)

    @property
    def first_is_last(self) -> bool:
        """Whether no leg waits behind the one that is being read: its end is the stream's."""
        return len(self._members) == 1
