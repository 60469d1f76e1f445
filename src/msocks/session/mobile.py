r"""The life of a session at the mobile node, sans-IO: events and time in, effects out.

::

    CONNECTING --reply OK--> LIVE <--reply OK-- PARKED
        |                     |  \--leg lost, link gone--> PARKED
        |                     \--better link, move(): attempt, the old leg goes on meanwhile
        \--verdict--> ENDED <--verdict of the proxy, program done-- any

One *attempt* is under way at a time. Each has a generation of its own, so that the proxy can tell them apart and the
last one wins. An attempt whose request has left may have been accepted although its reply was not heard. When it is
abandoned its socket may hold bytes that the proxy takes for received; the driver has to look, and to read them first.
"""

from __future__ import annotations

from dataclasses import dataclass

from msocks.errors import DestinationError, EndReason, LinkUnavailable, MsocksError, SessionEnded
from msocks.protocol.leg import LegReply, LegStatus
from msocks.session.mobile_effects import (
    Abandon,
    Attempt,
    Carried,
    Effect,
    Ended,
    MoveCause,
    MoveFailed,
    Parked,
    SessionState,
)
from msocks.session.patience import TURN_S, patience_s
from msocks.session.verdicts import ENDINGS, REFUSALS
from msocks.values.ids import FIRST_GENERATION

# A CONNECT waits for the server as well: as long as the proxy does, and a little more.
CONNECT_REPLY_S = 35.0
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 5.0
# A better link must have been there this long before a flow that is well goes back to it, unless told otherwise.
HOLD_DOWN_S = 1.0


@dataclass(slots=True)
class _Leg:
    generation: int
    link: str


@dataclass(slots=True)
class _Pending:
    generation: int
    link: str
    cause: MoveCause
    deadline: float
    handover: bool = False
    said: bool = False  # the request is on the way: whether the proxy has acted on it, only its reply tells


class MobileSession:
    """See the module. Times are seconds of one monotonic clock that the caller chooses.

    Every method returns the effects that the caller carries out, in order. :attr:`deadline` says when :meth:`on_time`
    is due (None: not at all); calling it earlier or more often does no harm.
    """

    def __init__(self, destination: str, *, reconnect: bool = True, inbound: bool = False) -> None:
        """`destination` is for errors. Without `reconnect` it ends with its first leg. `inbound`: begun by a peer."""
        self._destination = destination
        self._may_reconnect = reconnect
        self._inbound = inbound
        self.links: tuple[str, ...] = ()  # that can be used now
        self._rtt_s: dict[str, float] = {}
        self._hold_down_s = HOLD_DOWN_S
        self._chosen: str | None = None  # by move(): preferred above all as long as it is there
        self._leg: _Leg | None = None
        self._pending: _Pending | None = None
        self._generation = FIRST_GENERATION - 1
        self._was_live = False
        self._ended = False
        self._failures = 0
        self._last_link: str | None = None  # of the last attempt
        self._last_link_of_leg: str | None = None
        self._retry_at: float | None = None
        self._better_since: float | None = None
        self._requested: str | None = None  # the link of a move() that is not done
        self._lost_by = MoveCause.FIRST
        self.moves = 0

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """As users see it. A session that moves while its old leg stands is live."""
        if self._ended:
            return SessionState.ENDED
        if self._leg is not None:
            return SessionState.LIVE
        return SessionState.PARKED if self._was_live else SessionState.CONNECTING

    @property
    def link(self) -> str | None:
        """The link of the live leg; while there is none, the one that is being tried."""
        if self._leg is not None:
            return self._leg.link
        return self._pending.link if self._pending is not None else None

    @property
    def carried_by(self) -> str | None:
        """The link of the live leg or, while there is none, of the one before; None before the first."""
        return self._last_link_of_leg

    @property
    def generation(self) -> int:
        """Generation of the live leg, or of the last attempt."""
        return self._leg.generation if self._leg is not None else self._generation

    @property
    def newest_generation(self) -> int:
        """Generation of the last attempt: the proxy may have accepted that, though no reply has come."""
        return self._generation

    @property
    def attempting(self) -> int | None:
        """Generation of the attempt under way."""
        return self._pending.generation if self._pending is not None else None

    @property
    def deadline(self) -> float | None:
        """When on_time() is due."""
        moments = [moment for moment in (self._retry_at, self._hold_down_ends()) if moment is not None]
        if self._pending is not None:
            moments.append(self._pending.deadline)
        return min(moments) if moments and not self._ended else None

    # -- events -----------------------------------------------------------------------------------------------------

    def links_changed(
        self, now: float, links: tuple[str, ...], rtt_s: dict[str, float], hold_down_s: float = HOLD_DOWN_S
    ) -> list[Effect]:
        """The links that can be used now, the preferred one first, with the round-trip times that are known.

        A session that is well goes to a better link when that has been the better one for `hold_down_s`.
        """
        self._hold_down_s = hold_down_s
        appeared = set(links) - set(self.links)
        self.links = links
        self._rtt_s = rtt_s
        effects: list[Effect] = []
        if self._ended:
            return effects
        if appeared:
            self._failures = 0
            self._retry_at = None
        if self._pending is not None and self._pending.link not in links:
            effects += self._give_up_attempt(LinkUnavailable(self._pending.link, "it went down"))
        if self._leg is not None and self._leg.link not in links:
            effects += self._lose_leg(MoveCause.LINK_LOST)
        return effects + self._advance(now)

    def prefer(self, link: str) -> None:
        """Use `link` above all others from the beginning."""
        self._chosen = link

    def release(self) -> None:
        """Prefer no link any more: the order of the links alone decides."""
        self._chosen = None

    def give_up(self, error: MsocksError) -> list[Effect]:
        """End a session that was never live: there is no hope that it will be."""
        return [] if self._ended or self._was_live else self._end(error)

    def move(self, now: float, link: str) -> list[Effect]:
        """Carry the session over `link`, and prefer it from now on. Ends in Carried on it, or in MoveFailed."""
        if self._ended:
            return [MoveFailed(link, SessionEnded(EndReason.UNKNOWN))]
        if self._leg is not None and self._leg.link != link and not self._may_reconnect:
            return [MoveFailed(link, SessionEnded(EndReason.UNKNOWN))]
        if link not in self.links:
            return [MoveFailed(link, LinkUnavailable(link, "it is down, silent, or has no route to the proxy"))]
        effects: list[Effect] = []
        if self._requested is not None and self._requested != link:
            effects.append(MoveFailed(self._requested, LinkUnavailable(self._requested, "another move came after")))
        self._chosen = link
        self._better_since = None
        if self._leg is not None and self._leg.link == link and self._pending is None:
            self._requested = None
            return [*effects, Carried(self._leg.generation, link, link, MoveCause.REQUESTED)]
        self._requested = link
        if self._pending is not None and self._pending.link != link:
            effects += self._abandon()
        self._retry_at = None
        return effects + self._advance(now)

    def request_sent(self, now: float, generation: int) -> None:
        """The attempt's connection stands and its request is on the way."""
        if self._pending is not None and self._pending.generation == generation:
            self._pending.said = True
            is_open = self._was_live or self._inbound
            self._pending.deadline = now + (self._patience(self._pending.link) if is_open else CONNECT_REPLY_S)

    def takes_turn(self, now: float, generation: int, *, waits: bool) -> list[Effect]:
        """The attempt waits for others to be answered; or no longer, and its own time begins."""
        if self._pending is not None and self._pending.generation == generation:
            self._pending.deadline = now + (TURN_S if waits else self._patience(self._pending.link))
        return []

    def disowned(self, generation: int) -> None:
        """Whoever was asked by the attempt of `generation` did not know how: it has changed nothing."""
        if self._pending is not None and self._pending.generation == generation:
            self._pending.said = False

    def replied(self, now: float, generation: int, reply: LegReply) -> list[Effect]:
        """A verified reply of the proxy to the attempt of `generation`."""
        if self._ended or self._pending is None or self._pending.generation != generation:
            return []
        if reply.status is LegStatus.OK:
            return self._carried(now)
        if reply.status is LegStatus.REFUSED:
            return self._end(DestinationError.from_reply(reply.socks_reply, self._destination))
        if reply.status is LegStatus.LIMIT and not self._was_live:
            return self._end(SessionEnded(EndReason.LIMIT))
        if reply.status is LegStatus.UNKNOWN_SESSION and self._leg is not None:
            # The proxy has lost its records, and so has not touched the leg that stands: the last one.
            self._may_reconnect = self._pending.said = False
            return self.attempt_failed(now, generation, SessionEnded(EndReason.UNKNOWN))
        if reply.status in ENDINGS:
            return self.ended(ENDINGS[reply.status])
        # The others invite another attempt: with a new number and clock, above the generation that is told, or without
        # a leg that is gone.
        self._generation = max(self._generation, reply.generation)
        self._pending.said = False
        if reply.status is LegStatus.LEG_GONE and self._leg is not None:
            cause = self._pending.cause
            return [*self._abandon(), *self._lose_leg(cause), *self._advance(now)]
        why = REFUSALS.get(reply.status, reply.status.name.lower())
        return self.attempt_failed(now, generation, LinkUnavailable(self._pending.link, why))

    def attempt_failed(self, now: float, generation: int, error: MsocksError) -> list[Effect]:
        """The attempt came to nothing: no connection, no answer, or one that nobody can verify."""
        if self._ended or self._pending is None or self._pending.generation != generation:
            return []
        effects = self._give_up_attempt(error)
        self._back_off(now)
        return effects + self._advance(now)

    def leg_lost(self, now: float, generation: int) -> list[Effect]:
        """The live leg's connection is dead."""
        if self._ended or self._leg is None or self._leg.generation != generation:
            return []
        return [*self._lose_leg(MoveCause.LEG_LOST), *self._advance(now)]

    def foreign_leg(self, now: float, generation: int) -> list[Effect]:
        """The proxy accepted a leg that this side did not open: take the session back."""
        if self._ended or generation <= self._generation:
            return []
        self._generation = generation
        return [*self._lose_leg(MoveCause.LEG_LOST), *self._advance(now)]

    def ended(self, reason: EndReason) -> list[Effect]:
        """The proxy says, authenticated, that the session is over; or the program and the server have both closed."""
        if self._ended:
            return []
        return self._end(None if reason is EndReason.CLOSED else SessionEnded.because(reason))

    def retry(self, now: float) -> list[Effect]:
        """The proxy was heard anew: what has failed before need not fail again."""
        self._failures = 0
        self._retry_at = None
        return self._advance(now)

    def on_time(self, now: float) -> list[Effect]:
        """Time has passed."""
        if self._ended:
            return []
        if self._pending is not None and now >= self._pending.deadline:
            error = LinkUnavailable(self._pending.link, "the proxy did not answer over it in time")
            return self.attempt_failed(now, self._pending.generation, error)
        return self._advance(now)

    # -- decisions --------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Effect]:
        """Begin an attempt where one is called for and none is under way."""
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
        if self._ended or self._pending is not None or not self.links:
            return []
        if self._leg is None:
            if self._was_live and not self._may_reconnect:
                return self._end(SessionEnded(EndReason.UNKNOWN))
            if self._retry_at is not None:
                return []
            cause = MoveCause.REQUESTED if self._requested is not None else self._lost_by
            return self._attempt(now, self._next_link(), cause)
        best = self._best_link()
        if best == self._leg.link or not self._may_reconnect:
            self._better_since = None
            return []
        if self._requested is not None:
            return self._attempt(now, best, MoveCause.REQUESTED)
        if self._better_since is None:
            self._better_since = now
        hold_down_ends = self._hold_down_ends()
        if self._retry_at is not None or (hold_down_ends is not None and now < hold_down_ends):
            return []
        return self._attempt(now, best, MoveCause.PREFERRED)

    def _best_link(self) -> str:
        return self._chosen if self._chosen in self.links and self._chosen is not None else self.links[0]

    def _next_link(self) -> str:
        """The best link; after failures, each of the others in turn."""
        best = self._best_link()
        order = [best, *(link for link in self.links if link != best)]
        if self._failures and self._last_link in order:
            return order[(order.index(self._last_link) + 1) % len(order)]
        return best

    def _hold_down_ends(self) -> float | None:
        return None if self._better_since is None else self._better_since + self._hold_down_s

    def _patience(self, link: str) -> float:
        return patience_s(self._rtt_s.get(link), self._failures, len(self.links))

    def _attempt(self, now: float, link: str, cause: MoveCause) -> list[Effect]:
        self._generation += 1
        self._last_link = link
        handover_from = self._leg.generation if self._leg is not None else 0
        deadline = now + self._patience(link)
        self._pending = _Pending(self._generation, link, cause, deadline, handover=handover_from != 0)
        return [Attempt(self._generation, link, reconnect=self._was_live or self._inbound, handover_from=handover_from)]

    def _back_off(self, now: float) -> None:
        self._failures += 1
        if self._leg is None:
            rounds = (self._failures - 1) // max(1, len(self.links))
            self._retry_at = now + min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** min(rounds, 10))
        else:
            self._better_since = None
            self._retry_at = now + min(RETRY_MOST_S, HOLD_DOWN_S * 2 ** min(self._failures, 10))

    def _carried(self, now: float) -> list[Effect]:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        before = self._last_link_of_leg
        self._leg = _Leg(pending.generation, pending.link)
        self._last_link_of_leg = pending.link
        if self._was_live:
            self.moves += 1
        self._was_live = True
        self._failures = 0
        self._retry_at = self._better_since = None
        effects: list[Effect] = [Carried(pending.generation, pending.link, before, pending.cause)]
        if self._requested == pending.link:
            self._requested = None
        return effects + self._advance(now)

    def _lose_leg(self, cause: MoveCause) -> list[Effect]:
        """The live leg is gone, and with it what it was to hand over."""
        lost, self._leg = self._leg, None
        self._lost_by = cause
        self._better_since = None
        self._retry_at = None
        parked = Parked(lost.generation if lost is not None else 0)
        return [parked, *(self._abandon() if self._pending is not None and self._pending.handover else [])]

    def _abandon(self) -> list[Effect]:
        """Wait no longer. If the proxy may have acted on the request, the old leg is no longer to be relied on."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        effects: list[Effect] = [Abandon(pending.generation)]
        if pending.said and self._leg is not None:
            effects = self._lose_leg(MoveCause.LEG_LOST) + effects
        return effects

    def _give_up_attempt(self, error: MsocksError) -> list[Effect]:
        """Abandon the attempt; a move() that it was for has failed, unless there is no leg to go on with."""
        assert self._pending is not None
        link, had_leg = self._pending.link, self._leg is not None
        effects = self._abandon()
        if self._requested == link and (had_leg or link not in self.links):
            self._requested = None
            if self._chosen == link:
                self._chosen = None
            effects.append(MoveFailed(link, error))
        return effects

    def _end(self, error: MsocksError | None) -> list[Effect]:
        effects: list[Effect] = self._abandon() if self._pending is not None else []
        if self._requested is not None:
            effects.append(MoveFailed(self._requested, error or SessionEnded(EndReason.CLOSED)))
            self._requested = None
        self._ended = True
        self._leg = None
        return [*effects, Ended(error)]
