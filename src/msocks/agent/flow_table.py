"""All flows of the agent: those that live, and for a while those that have ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping

from msocks.agent.any_flow import AnyFlow
from msocks.agent.flow import FlowView
from msocks.agent.settings import AgentLimits
from msocks.errors import MsocksError
from msocks.session.mobile_effects import SessionState
from msocks.transport.deadlines import Deadlines
from msocks.values.ids import SessionId, matching, printed_forms


class NoSuchFlow(MsocksError, LookupError):
    """An id names no flow."""

    def __init__(self, prefix: str) -> None:
        super().__init__(f"there is no flow {prefix[:40]}", remedy="`msocks flows` shows the flows")


class FlowHasEnded(MsocksError, ConnectionError):
    """An id names a flow that is over."""

    def __init__(self, printed: str) -> None:
        super().__init__(f"the flow {printed} has ended", remedy="`msocks flows` shows the flows that live")


class AmbiguousFlow(MsocksError, LookupError):
    """An id names several flows."""

    def __init__(self, prefix: str, printed: list[str]) -> None:
        shown = ", ".join(printed[:8]) + (", ..." if len(printed) > 8 else "")
        super().__init__(f"{prefix[:40]} could be {len(printed)} flows: {shown}", remedy="give more digits")


class FlowTable:
    """See the module. `AgentLimits` bounds it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: AgentLimits) -> None:
        self._limit = limits.flows
        self._flows: dict[SessionId, AnyFlow] = {}
        self._ended: dict[SessionId, FlowView] = {}
        self._remembered = Deadlines[SessionId](loop, limits.ended_kept_s, self._forget, limit=limits.ended_flows)

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[AnyFlow]:
        """Those that have not been retired; a copy, so that they may end meanwhile."""
        return iter(list(self._flows.values()))

    @property
    def is_full(self) -> bool:
        """Whether there are as many flows as there may be."""
        return len(self._flows) >= self._limit

    def add(self, flow: AnyFlow) -> None:
        """A flow begins."""
        self._flows[flow.session] = flow

    def retire(self, flow: AnyFlow) -> None:
        """A flow has ended: its view stays for a while."""
        if self._flows.pop(flow.session, None) is not None:
            self._ended[flow.session] = flow.view()
            self._remembered.add(flow.session)

    def close(self) -> None:
        """Forget what has ended, and stop the timer."""
        self._remembered.take_all()
        self._ended.clear()

    def find(self, prefix: str) -> AnyFlow:
        """The flow whose id begins with `prefix`, in hexadecimal digits.

        Raises:
            NoSuchFlow: None does.
            FlowHasEnded: One did, and is over.
            AmbiguousFlow: Several do that live.
        """
        alive = {session for session, flow in self._flows.items() if flow.state is not SessionState.ENDED}
        printed = self.printed()
        found = matching(prefix, printed)
        living = [session for session in found if session in alive]
        if len(living) > 1:
            raise AmbiguousFlow(prefix, [printed[session] for session in living])
        if living:
            return self._flows[living[0]]
        if found:
            raise FlowHasEnded(printed[found[0]])
        raise NoSuchFlow(prefix)

    def printed(self) -> Mapping[SessionId, str]:
        """The short form of every id that is listed, at least eight digits."""
        return printed_forms([*self._flows, *self._ended])

    def views(self) -> list[FlowView]:
        """All flows in the order of their beginning, the ended ones included."""
        views = [*self._ended.values(), *(flow.view() for flow in self._flows.values())]
        return sorted(views, key=lambda view: view.since)

    def per_link(self) -> Counter[str]:
        """How many flows each link carries."""
        return Counter(flow.link for flow in self._flows.values() if flow.link is not None)

    def per_state(self) -> dict[SessionState, int]:
        """How many flows are in each state; those that have ended as far as they are remembered."""
        found = Counter(view.state for view in self.views())
        return {state: found[state] for state in SessionState}

    def _forget(self, session: SessionId) -> None:
        self._ended.pop(session, None)
