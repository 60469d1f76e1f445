"""What the life of a mobile session consists of, as values: its states, why it moves, what is to be done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from msocks.errors import MsocksError


class SessionState(StrEnum):
    """What a user sees of a session."""

    CONNECTING = "connecting"
    LIVE = "live"
    PARKED = "parked"
    ENDED = "ended"


class MoveCause(StrEnum):
    """Why a session got a new leg."""

    FIRST = "first"
    REQUESTED = "requested"
    LINK_LOST = "link-lost"
    LEG_LOST = "leg-lost"
    PREFERRED = "preferred-link-back"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Open a leg of this generation over `link`: CONNECT as long as no leg was ever live, RECONNECT after.

    `handover_from` is the generation of the live leg where that is to hand over, else 0.
    """

    generation: int
    link: str
    reconnect: bool
    handover_from: int = 0


@dataclass(frozen=True, slots=True)
class Abandon:
    """Wait no longer for this attempt. If the session is still live, its leg sends again."""

    generation: int


@dataclass(frozen=True, slots=True)
class Carried:
    """The session runs on a new leg now; the attempt's reply says from where."""

    generation: int
    link: str
    from_link: str | None
    cause: MoveCause


@dataclass(frozen=True, slots=True)
class Parked:
    """The live leg is gone and no other stands yet."""

    generation: int  # of that leg; 0 where there was none


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over; `error` is None where both sides closed it."""

    error: MsocksError | None


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """What move() asked for did not come about; the session goes on as it was."""

    link: str
    error: MsocksError


Effect = Attempt | Abandon | Carried | Parked | Ended | MoveFailed
