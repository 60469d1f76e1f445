"""All sessions of the proxy: found by user and id, counted, expired."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import structlog

from msocks.datapath.interface import Datapath, Survivor
from msocks.errors import EndReason
from msocks.protocol.control import ParkedLeg, ReceivedStream, SessionEnded
from msocks.protocol.leg import Close, CloseMode, Connect, DatapathKind, LegReply, LegStatus, Query, Reconnect
from msocks.protocol.socks5_wire import ReplyCode
from msocks.proxy.associations import Association
from msocks.proxy.config import ProxyConfig
from msocks.proxy.dialler import Dialler
from msocks.proxy.proxied_session import ProxiedSession
from msocks.proxy.session_host import SessionView
from msocks.proxy.waiting_leg import Grant, WaitingLeg, verdict
from msocks.session.byte_budget import ByteBudget
from msocks.session.record import SessionRecord, SessionState, Tombstones
from msocks.session.resume import ClientPosition
from msocks.store.sessions import SessionStore, StoredSession
from msocks.transport.deadlines import Deadlines
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint
from msocks.values.ids import ID_BYTES, SessionId

_log = structlog.get_logger("msocks.proxy.session")

# So long a server may go on sending after its client has hung up; all of it is discarded.
_HANG_UP_S = 60.0
_MIB = 1024 * 1024


class SessionRegistry:
    """See the module. Implements `msocks.proxy.session_host.SessionHost`.

    A session is found under its user and id together, so another user's id is simply unknown.
    """

    def __init__(
        self,
        reactor: Reactor,
        config: ProxyConfig,
        dialler: Dialler,
        datapath: Datapath,
        store: SessionStore,
        fingerprint: Callable[[str], bytes],
    ) -> None:
        """
        Args:
            reactor: The event loop's part for sockets.
            config: The proxy's settings.
            dialler: Connects to servers.
            datapath: Carries the bytes.
            store: Where what the next process has to know is kept.
            fingerprint: That of a user who is logged in.
        """
        self.datapath = datapath
        self._store = store
        self._fingerprint = fingerprint
        self._loop = reactor.loop
        self._limits = config.limits
        self._dialler = dialler
        self._sessions: dict[tuple[str, SessionId], ProxiedSession] = {}
        self._count_of_user: dict[str, int] = {}
        self._budget = ByteBudget(config.limits.held_mib * _MIB)
        self._budget_of_user: dict[str, ByteBudget] = {}
        self._tombstones = Tombstones(config.limits.tombstones, config.tombstone_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self._hanging_up: Deadlines[ProxiedSession] = Deadlines(self._loop, _HANG_UP_S, ProxiedSession.cut)
        self._parked: Deadlines[ProxiedSession] = Deadlines(self._loop, config.detach_grace_s, self._expire)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[SessionView]:
        return (session.view(self._store.is_durable(key)) for key, session in tuple(self._sessions.items()))

    # -- requests ---------------------------------------------------------------------------------------------------

    def open_plain(self, leg: WaitingLeg, user: str, destination: Endpoint, max_sessions: int) -> ProxiedSession | None:
        """A plain SOCKS5 client's CONNECT; None where a limit refuses it, which the leg has been told."""
        # Nobody can name it, so its id need not be unguessable; but two must not be the same.
        session = SessionId(random.randbytes(ID_BYTES))
        return self._open(leg, user, session, destination, max_sessions, resumable=False)

    def connect(self, leg: WaitingLeg, user: str, request: Connect, max_sessions: int) -> ProxiedSession | None:
        """A CONNECT of an MSOCKS leg; returns the session that the leg waits for, None where it was answered."""
        known = self._sessions.get((user, request.session))
        if known is None:
            stone = self._tombstones.find(user, request.session, self.now())
            if stone is None:
                return self._open(leg, user, request.session, request.destination, max_sessions, resumable=True)
            same = stone.destination == request.destination
            leg.answer(verdict(stone) if same else _other_destination(stone.generation))
            return None
        if known.record.destination != request.destination:
            leg.answer(_other_destination(known.record.newest_claim))
            return None
        known.join(leg)
        return known

    def reconnect(self, leg: WaitingLeg, user: str, request: Reconnect) -> None:
        """A RECONNECT."""
        session = self._find(leg, user, request.session)
        if session is not None:
            position = ClientPosition(
                received=request.received,
                sends_from=request.upstream_from,
                up_fin=request.up_fin_at,
                down_fin=request.down_fin_at,
                handover=request.handover_from != 0,
                first_flight=request.first_flight,
            )
            session.reconnect(leg, position, request.handover_from)

    def query(self, leg: WaitingLeg, user: str, request: Query) -> None:
        """A QUERY."""
        session = self._find(leg, user, request.session)
        if session is not None:
            session.query(leg)

    def close_session(self, leg: WaitingLeg, user: str, request: Close) -> None:
        """A CLOSE; repeated, it is answered alike."""
        session = self._sessions.get((user, request.session))
        if session is None:
            stone = self._tombstones.find(user, request.session, self.now())
            if stone is not None and stone.end is EndReason.CLIENT_CLOSED:
                leg.answer(LegReply(status=LegStatus.OK, generation=stone.generation))
            else:
                leg.answer(verdict(stone) if stone is not None else LegReply(status=LegStatus.UNKNOWN_SESSION))
        elif request.generation < session.record.generation:
            leg.answer(LegReply(status=LegStatus.STALE_GENERATION, generation=session.record.generation))
        elif request.mode is CloseMode.RESET:
            session.end(EndReason.CLIENT_CLOSED)
            leg.answer(LegReply(status=LegStatus.OK, generation=session.record.generation))
        else:
            session.hang_up(leg, request.up_fin_at or 0)

    def park(self, user: str, leg: ParkedLeg) -> bool:
        """A leg is gone, says its client; whether the session waits for another now."""
        known = self._sessions.get((user, leg.session))
        return known is not None and known.park(leg.generation, leg.received)

    def confirm(self, user: str, stream: ReceivedStream) -> ReceivedStream | SessionEnded | None:
        """What a client has received of a session; the answer is what has arrived from it, or how the session ended."""
        known = self._sessions.get((user, stream.session))
        if known is not None:
            return known.confirm(stream)
        stone = self._tombstones.find(user, stream.session, self.now())
        return None if stone is None or stone.end is None else SessionEnded(stream.session, stone.end)

    def received(self, user: str, session: SessionId) -> int | None:
        """U of a session: how much of its upstream has arrived; None where nothing carries it."""
        known = self._sessions.get((user, session))
        return None if known is None else known.received

    def _find(self, leg: WaitingLeg, user: str, session: SessionId) -> ProxiedSession | None:
        known = self._sessions.get((user, session))
        if known is None:
            stone = self._tombstones.find(user, session, self.now())
            leg.answer(verdict(stone) if stone is not None else LegReply(status=LegStatus.UNKNOWN_SESSION))
        return known

    def _open(
        self,
        leg: WaitingLeg,
        user: str,
        session: SessionId,
        destination: Endpoint,
        max_sessions: int,
        *,
        resumable: bool,
    ) -> ProxiedSession | None:
        if not self._has_room(user, max_sessions, leg.sockaddr, destination):
            leg.answer(LegReply(status=LegStatus.LIMIT))
            return None
        record = SessionRecord(session, user, destination, self.now(), resumable)
        opened = ProxiedSession(record, self, leg, leg.association, leg.sockaddr)
        self._enter(opened)
        opened.dialling(self._dialler.dial(destination, opened.prepare_server_leg, opened.on_dialled))
        return opened

    def accept_plain(
        self, leg: WaitingLeg, user: str, server: socket.socket, peer: Endpoint, max_sessions: int
    ) -> ProxiedSession | None:
        """A peer has connected for a plain BIND; None where a limit refuses it, which the leg has been told."""
        if not self._has_room(user, max_sessions, leg.sockaddr, peer):
            leg.answer(LegReply(status=LegStatus.LIMIT))
            return None
        record = SessionRecord(SessionId(random.randbytes(ID_BYTES)), user, peer, self.now(), False, inbound=True)
        accepted = ProxiedSession(record, self, leg, None, leg.sockaddr)
        self._enter(accepted)
        accepted.accepted(server)
        return accepted

    def accept_mobile(
        self, association: Association, client: Endpoint, server: socket.socket, peer: Endpoint, max_sessions: int
    ) -> ProxiedSession | None:
        """A peer has connected for a mobile node, whose first leg is yet to come; None where a limit refuses it."""
        sockaddr = (str(client.host), client.port)
        if not self._has_room(association.user, max_sessions, sockaddr, peer):
            return None
        record = SessionRecord(SessionId.generate(), association.user, peer, self.now(), inbound=True)
        accepted = ProxiedSession(record, self, None, association, sockaddr)
        self._enter(accepted)
        accepted.accepted(server)
        return accepted

    def _has_room(self, user: str, max_sessions: int, sockaddr: tuple[Any, ...], destination: Endpoint) -> bool:
        whole = len(self._sessions) >= self._limits.sessions
        if not whole and self._count_of_user.get(user, 0) < max_sessions:
            return True
        client = str(Endpoint.from_sockaddr(sockaddr))
        whose = "proxy" if whole else "user"
        _log.warning("session_limit", user=user, whose=whose, client=client, destination=str(destination))
        return False

    def _enter(self, session: ProxiedSession) -> None:
        record = session.record
        self._sessions[record.user, record.session] = session
        self._count_of_user[record.user] = self._count_of_user.get(record.user, 0) + 1

    # -- what an earlier process has left ---------------------------------------------------------------------------

    def adopt(self, record: SessionRecord, survivor: Survivor, association: Association | None) -> ProxiedSession:
        """Go on with a session that the datapath has carried on."""
        client = survivor.client
        session = ProxiedSession(record, self, None, association, (str(client.host), client.port))
        self._enter(session)
        session.adopted(self.datapath.adopt(survivor, session, resumable=record.resumable), survivor.bound)
        if record.state is SessionState.PARKED:
            self._parked.add(session)
        elif survivor.parked:
            session.end(EndReason.CLIENT_CLOSED)  # no other leg can follow
        return session

    def bury(self, record: SessionRecord) -> None:
        """Remember how a session has ended before it could be adopted."""
        self._tombstones.bury(record, self.now())

    # -- ends -------------------------------------------------------------------------------------------------------

    def end_user(self, user: str) -> None:
        """The operator removed the user: all his sessions end."""
        for session in tuple(self._sessions.values()):
            if session.record.user == user:
                session.end(EndReason.USER_REMOVED)

    def end_all(self, reason: EndReason) -> None:
        """The proxy goes: nothing carries the sessions any more."""
        for session in tuple(self._sessions.values()):
            session.end(reason)
        self._parked.take_all()
        for session in self._hanging_up.take_all():
            session.cut()

    def leave(self) -> None:
        """Let go of the sessions that the datapath carries on without this process, for the next one to adopt."""
        for key, session in tuple(self._sessions.items()):
            if session.outlives_process:
                self._parked.discard(session)
                del self._sessions[key]

    def users(self) -> list[str]:
        """The users who have sessions."""
        return list(self._count_of_user)

    def _expire(self, session: ProxiedSession) -> None:
        session.end(EndReason.EXPIRED)

    # -- SessionHost ------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._loop.time()

    def budget_of(self, user: str) -> ByteBudget:
        budget = self._budget_of_user.get(user)
        if budget is None:
            budget = self._budget_of_user[user] = ByteBudget(self._limits.held_mib_per_user * _MIB, self._budget)
        return budget

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_parked(self, session: ProxiedSession) -> None:
        self._parked.add(session)

    def on_resumed(self, session: ProxiedSession) -> None:
        self._parked.discard(session)

    def on_ended(self, session: ProxiedSession) -> None:
        record = session.record
        assert record.state is SessionState.ENDED
        if record.resumable:
            self._parked.discard(session)
        if self._sessions.pop((record.user, record.session), None) is None:
            return  # it was left to the next process, and has ended before this one
        left = self._count_of_user[record.user] - 1
        if left:
            self._count_of_user[record.user] = left
        else:
            del self._count_of_user[record.user]
            self._budget_of_user.pop(record.user, None)
        if record.resumable:
            self._tombstones.bury(record, self.now())
            self._store.forget((record.user, record.session))

    def on_granted(
        self, record: SessionRecord, association: Association | None, grant: Grant, identity: bytes | None
    ) -> StoredSession | None:
        is_kept = record.resumable and grant.kind is DatapathKind.SPLICE
        if not is_kept or association is None or identity is None:
            return None
        stored = StoredSession(
            session=record.session,
            user=record.user,
            user_fingerprint=self._fingerprint(record.user),
            association=association.id,
            destination=record.destination,
            opened_at=time.time() - (self.now() - record.opened_at),
            generation=grant.generation,
            up_from=grant.up_from,
            down_from=grant.down_from,
            identity=identity,
        )
        self._store.note(stored)
        return stored

    def on_carried(self, noted: StoredSession | None) -> None:
        if noted is not None:
            self._store.put(noted)

    def on_hanging_up(self, session: ProxiedSession) -> None:
        self._hanging_up.add(session)

    def on_hung_up(self, session: ProxiedSession) -> None:
        self._hanging_up.discard(session)


def _other_destination(generation: int) -> LegReply:
    return LegReply(status=LegStatus.REFUSED, socks_reply=ReplyCode.NOT_ALLOWED, generation=generation)
