"""Which leg the next byte of a stream comes from: legs form a chain, drained in generation order.

A leg that has been replaced may still hold bytes that its kernel ACKed and nobody has read. The sender has forgotten
them, so no later leg repeats them; they are read first. Where a later leg repeats bytes that an earlier one supplied,
the repetition is discarded.

There are two ways to replace a leg. A *takeover* uses of the old leg what this side's kernel has by then. A *handover*
lets the old leg, which still carries, deliver everything that was sent on it; the new leg begins behind that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
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


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One leg of a chain: where its socket stands, where its successor takes over, whether it has yet to deliver."""

    generation: int
    position: int
    limit: int | None
    handing_over: bool


@dataclass(slots=True)
class _Member:
    generation: int
    position: int  # stream offset of the next byte that this leg's socket will give
    limit: int | None = None  # stream offset at which its successor takes over
    handing_over: bool = False  # not all bytes before the limit have come yet


class LegChain:
    """Positions of the legs of one stream in one direction; all offsets absolute, in bytes.

    `unread` is a function from a generation to the bytes that this side's kernel holds unread in that leg.
    """

    __slots__ = ("_members", "position")

    def __init__(self) -> None:
        self.position = 0  # offset of the next byte that the reader has not got yet
        self._members: deque[_Member] = deque()

    @property
    def newest(self) -> int | None:
        """Generation of the last leg, None before the first."""
        return self._members[-1].generation if self._members else None

    @property
    def handing_over(self) -> bool:
        """Whether the leg that the next byte comes from was replaced before it had delivered everything."""
        return bool(self._members) and self._members[0].handing_over

    def awaits_handover(self, unread: Callable[[int], int]) -> bool:
        """Whether a leg has not yet delivered, to this side's kernel, what its successor counts on."""
        return any(
            member.limit is not None
            and member.handing_over
            and member.position + unread(member.generation) < member.limit
            for member in self._members
        )

    @property
    def first(self) -> int | None:
        """Generation of the leg that the next byte comes from."""
        return self._members[0].generation if self._members else None

    def links(self) -> list[ChainLink]:
        """The chain as it is, to be restored elsewhere."""
        return [ChainLink(each.generation, each.position, each.limit, each.handing_over) for each in self._members]

    def restore(self, position: int, links: Iterable[ChainLink]) -> None:
        """Go on with a chain of which so many bytes were read. While there is none."""
        self.position = position
        self._members.extend(_Member(each.generation, each.position, each.limit, each.handing_over) for each in links)

    @property
    def first_is_last(self) -> bool:
        """Whether no leg waits behind the one that is being read: its end is the stream's."""
        return len(self._members) == 1

    def received(self, unread: Callable[[int], int]) -> int:
        """Bytes of the stream, from the beginning without a gap, that this side's kernel has or the reader got."""
        received = self.position
        for member in self._members:
            if member.position > received:
                break
            available = member.position + unread(member.generation)
            received = max(received, available if member.limit is None else min(available, member.limit))
        return received

    def add(
        self, generation: int, begins_at: int, unread: Callable[[int], int], *, handover: bool = False
    ) -> list[int]:
        """A new leg whose first byte is at offset `begins_at`; returns the generations that leave the chain for it.

        Raises StreamGapError when the earlier legs cannot supply the bytes before `begins_at` (with `handover`: when
        there is no leg that could), ValueError when `generation` does not increase; nothing has changed then.
        """
        members = self._members
        if members and generation <= members[-1].generation:
            raise ValueError(f"generation {generation} does not follow {members[-1].generation}")
        received = self.received(unread)
        if begins_at > received and not (handover and members):
            raise StreamGapError(received, begins_at)
        dropped: list[int] = []
        if handover and members:
            members[-1].limit = max(received, begins_at)
            members[-1].handing_over = begins_at > received
        else:
            # Whatever earlier legs were still to hand over, the new one brings.
            while members and members[-1].position >= received:
                dropped.append(members.pop().generation)
            if members:
                members[-1].limit = received
                members[-1].handing_over = False
        members.append(_Member(generation, begins_at))
        return dropped

    def exhausted(self) -> list[int]:
        """Generations that have nothing more to give; they leave the chain."""
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
        """The first leg ended before its limit: what to raise, unless it was handing over."""
        first = self._members[0]
        assert first.limit is not None  # the last leg has no limit to miss
        return StreamGapError(first.position, first.limit)

    def has(self, generation: int) -> bool:
        """Whether a leg is still to be read."""
        return any(member.generation == generation for member in self._members)
