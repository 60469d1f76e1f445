"""What outlives the agent: flows that the service manager stores, and a list of the sessions that are open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import structlog

from msocks.agent.kept_flow import AdoptedFlow, Hands, KeptFlow, Stored, flow_name, leg_name, sort_inherited
from msocks.agent.local_port import ProgramRequest
from msocks.agent.open_sessions import OpenSessions
from msocks.client.node import MobileNode
from msocks.transport.descriptor_store import DescriptorStore, take_inherited
from msocks.values.ids import MAX_GENERATION, SessionId

_log = structlog.get_logger("msocks.agent.flow_keeper")

_FLUSH_S = 1.0


class FlowKeeper:
    """See the module. `open`, then `adopt` whole, then `close_left`."""

    def __init__(self, node: MobileNode, file: Path, most: int, hands: Hands) -> None:
        """
        Args:
            node: Tells the proxy.
            file: Where the list of sessions is.
            most: Flows at the same time.
            hands: See `KeptFlow`.
        """
        self._node = node
        self._file = file
        self._most = most
        self._hands = hands
        self._store: DescriptorStore | None = None
        self._sessions: OpenSessions | None = None

    @property
    def keeps(self) -> bool:
        """Whether flows outlive this process."""
        return self._store is not None

    def open(self) -> None:
        """Find out what there is of the two; neither is needed."""
        self._store = DescriptorStore.of_this_service(self._node.reactor)
        try:
            self._sessions = OpenSessions(self._file, self._most)
        except OSError as error:
            _log.warning(
                "sessions_not_noted",
                file=str(self._file),
                reason=error.strerror,
                remedy="if this agent is killed, servers learn of it late; give it a control socket of its own",
            )

    def new(self, request: ProgramRequest) -> KeptFlow | None:
        """For a new flow; None where nothing is kept, and for a peer's connection, which ends with this process."""
        if self._store is None or request.incoming is not None:
            return None
        try:
            return KeptFlow(self._store, self._hands)
        except OSError as error:
            _log.warning("flow_not_kept", reason=error.strerror, remedy="raise LimitNOFILE or the memory limit")
            return None

    def opened(self, session: SessionId) -> None:
        """A session begins."""
        if self._sessions is not None:
            self._sessions.add(session)

    def ended(self, session: SessionId) -> None:
        """A session is over, or the proxy is being told so."""
        if self._sessions is not None:
            self._sessions.discard(session)

    def adopt(self) -> Iterator[AdoptedFlow]:
        """The flows that an earlier agent has left, as far as they can go on; the others are reset at both ends."""
        if self._store is None:
            return
        found, broken, names = sort_inherited(take_inherited())
        for name in names:
            self._store.remove(name)
        for session in broken:
            _log.warning("flow_not_taken_up", flow=session[:8], reason="not all of it was stored")
        for stored in found:
            try:
                yield AdoptedFlow(self._store, self._hands, stored)
            except (ValueError, OSError) as error:
                _log.warning("flow_not_taken_up", flow=stored.session.short, reason=str(error))
                self._drop(stored)

    def close_left(self, adopted: set[SessionId]) -> None:
        """Have the proxy reset the sessions that an earlier agent has left open, but for those that go on."""
        if self._sessions is None:
            return
        for session in self._sessions.left:
            if session not in adopted:
                _log.info("session_left_behind", flow=session.short)
                # Whatever leg was its newest: nobody else has the session.
                self._node.close_session(session, MAX_GENERATION)
                self._sessions.discard(session)

    def leave(self) -> None:
        """This process ends, and its flows go on."""
        if self._store is not None:
            self._store.flush(_FLUSH_S)

    def close(self) -> None:
        """Note nothing any more."""
        if self._store is not None:
            self._store.flush(_FLUSH_S)
            self._store.close()
            self._store = None
        if self._sessions is not None:
            self._sessions.close()
            self._sessions = None

    def _drop(self, stored: Stored) -> None:
        assert self._store is not None
        session = stored.session.hex()
        stored.close_legs()
        stored.program.close()
        self._store.remove(flow_name(session))
        for generation in stored.legs:
            self._store.remove(leg_name(session, generation))
