"""The proxy's side of a session's life: its states, its generations, and what remains of it afterwards.

::

    CONNECTING --server connected--> LIVE <--leg attached / leg lost--> PARKED
         |                            |                                   |
         +---------- refused ---------+---- reset, closed, expired, ... --+--> ENDED

A session that was connected while its leg was lost goes from CONNECTING to PARKED.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from msocks.errors import EndReason, InvalidState
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId


class SessionState(StrEnum):
    """States as they are shown to people."""

    CONNECTING = "connecting"
    LIVE = "live"
    PARKED = "parked"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class SessionRecord:
    """What the proxy knows of a session apart from its bytes. Times are seconds of a monotonic clock.

    Attributes:
        session: Its id; unique within the user's sessions only.
        user: Whose it is; "" for a client that needed no authentication.
        destination: What the client asked for.
        opened_at: When.
        resumable: Whether another leg can follow when one is lost: not for plain SOCKS5 clients.
        inbound: Whether the server is a peer that has connected to the proxy; `destination` is the peer's address then.
        state: See the module.
        generation: That of the newest leg that was accepted; 0 before the first.
        detached_at: Since when it is parked; None in the other states.
        end: Why it ended.
        reply_code: Where it was refused, the SOCKS reply code.
        down_fin: Once it has ended, the final length of the downstream, where the server has ended it.
    """

    session: SessionId
    user: str
    destination: Endpoint
    opened_at: float
    resumable: bool = True
    inbound: bool = False
    state: SessionState = SessionState.CONNECTING
    generation: int = 0
    detached_at: float | None = None
    end: EndReason | None = None
    reply_code: int = 0
    down_fin: int | None = None
    _claimed: int = field(default=0, repr=False)

    @property
    def newest_claim(self) -> int:
        """The highest generation that was accepted or is being considered."""
        return max(self.generation, self._claimed)

    def claim(self, generation: int) -> bool:
        """An authenticated leg wants to carry the session; False where it is not newer than every other.

        While a leg is being considered (a reconnect waits for the datapath to settle), a higher claim overtakes it:
        ask `holds_claim` when the wait is over.
        """
        if generation <= self.generation or generation <= self._claimed:
            return False
        self._claimed = generation
        return True

    def holds_claim(self, generation: int) -> bool:
        """Whether no newer leg has come since `claim(generation)`."""
        return self._claimed == generation > self.generation and self.state is not SessionState.ENDED

    def withdraw(self, generation: int) -> None:
        """The claim came to nothing: the same generation may be claimed again."""
        if self._claimed == generation:
            self._claimed = self.generation

    def attach(self, generation: int) -> None:
        """The leg of `generation` carries the session now.

        Raises:
            InvalidState: The session has ended, or the generation does not rise.
        """
        if self.state is SessionState.ENDED or generation <= self.generation:
            raise InvalidState(f"leg {generation} cannot carry a session at {self.generation} ({self.state})")
        self.generation = generation
        self._claimed = max(self._claimed, generation)
        self.state = SessionState.LIVE
        self.detached_at = None

    def detach(self, generation: int, now: float) -> bool:
        """The leg of `generation` carries nothing any more; False where a newer one does, or none did."""
        if self.state is not SessionState.LIVE or generation != self.generation:
            return False
        self.state = SessionState.PARKED
        self.detached_at = now
        return True

    def connected_without_leg(self, now: float) -> None:
        """The server has answered, but the leg that asked is gone."""
        if self.state is SessionState.CONNECTING:
            self.state = SessionState.PARKED
            self.detached_at = now

    def finish(self, reason: EndReason, reply_code: int = 0, down_fin: int | None = None) -> bool:
        """The session is over; False where it was before. `down_fin`: the final length of the downstream, if known."""
        if self.state is SessionState.ENDED:
            return False
        self.state = SessionState.ENDED
        self.end = reason
        self.reply_code = reply_code
        self.down_fin = down_fin
        self.detached_at = None
        return True


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What remains of an ended session, so that a late request gets the true verdict.

    Attributes:
        destination: What the session was connected to; a repeated CONNECT must ask for the same.
        generation: Of its last leg.
        end: Why it ended.
        reply_code: Where it was refused, the SOCKS reply code.
        down_fin: The final length of the downstream, where the server has ended it.
        ended_at: When, in seconds.
    """

    destination: Endpoint
    generation: int
    end: EndReason
    reply_code: int
    down_fin: int | None
    ended_at: float


class Tombstones:
    """The last `limit` ended sessions, each for `lifetime_s` seconds; the oldest go first."""

    def __init__(self, limit: int, lifetime_s: float) -> None:
        self._limit = limit
        self._lifetime_s = lifetime_s
        self._stones: OrderedDict[tuple[str, SessionId], Tombstone] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stones)

    def bury(self, record: SessionRecord, now: float) -> None:
        """Remember an ended session.

        Raises:
            InvalidState: It has not ended.
        """
        if record.end is None:
            raise InvalidState("a session that has not ended cannot be buried")
        stone = Tombstone(record.destination, record.generation, record.end, record.reply_code, record.down_fin, now)
        key = (record.user, record.session)
        self._stones[key] = stone
        self._stones.move_to_end(key)
        self._forget(now)

    def find(self, user: str, session: SessionId, now: float) -> Tombstone | None:
        """What remains of a user's session; None where it never was, or was too long ago."""
        self._forget(now)
        return self._stones.get((user, session))

    def _forget(self, now: float) -> None:
        while self._stones:
            oldest = next(iter(self._stones.values()))
            if len(self._stones) <= self._limit and now - oldest.ended_at < self._lifetime_s:
                break
            self._stones.popitem(last=False)
