"""What a session needs of whoever keeps the sessions, and what it tells the operator."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from msocks.datapath.interface import Counters, Datapath
from msocks.proxy.associations import Association
from msocks.proxy.waiting_leg import Grant
from msocks.session.byte_budget import ByteBudget
from msocks.session.record import SessionRecord
from msocks.store.sessions import StoredSession
from msocks.values.endpoint import Endpoint

if TYPE_CHECKING:
    from msocks.proxy.proxied_session import ProxiedSession


class SessionHost(Protocol):
    """Who keeps the sessions."""

    @property
    def datapath(self) -> Datapath:
        """Makes conduits."""

    def budget_of(self, user: str) -> ByteBudget:
        """What the bytes held for a user's sessions count in."""

    def now(self) -> float:
        """Monotonic seconds."""

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` as a task."""

    def on_parked(self, session: ProxiedSession) -> None:
        """The session waits for a leg."""

    def on_resumed(self, session: ProxiedSession) -> None:
        """A leg carries the session."""

    def on_granted(
        self, record: SessionRecord, association: Association | None, grant: Grant, identity: bytes | None
    ) -> StoredSession | None:
        """A leg is about to carry the session; what outlives this process, from now on, where that is to be."""

    def on_carried(self, noted: StoredSession | None) -> None:
        """It does, by the datapath; `on_granted` gave what was noted."""

    def on_ended(self, session: ProxiedSession) -> None:
        """The session is over; forget it."""

    def on_hanging_up(self, session: ProxiedSession) -> None:
        """The session is over, but its server has not got everything yet: call `cut` after a while."""

    def on_hung_up(self, session: ProxiedSession) -> None:
        """No `cut` is needed any more."""


@dataclass(frozen=True, slots=True)
class SessionView:
    """What the operator sees of a session.

    Attributes:
        record: Its life.
        client: Where the newest leg comes from.
        datapath: What carries it; empty before the first leg.
        datapath_reason: Why that is not the splice.
        counters: Bytes so far.
        durable: It would outlive this process, and the next one could reconnect it.
    """

    record: SessionRecord
    client: Endpoint
    datapath: str
    datapath_reason: str
    counters: Counters
    durable: bool
