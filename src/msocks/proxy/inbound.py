"""All listeners of the proxy's clients: who may have them, what they accept, and when that is given up.

A connection that a listener has accepted is a session from then on. That of a plain client's BIND begins with the
connection that asked for it; that of a mobile node is announced to it and waits for its first leg.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from msocks.errors import EndReason
from msocks.protocol.inbound import ListenStatus
from msocks.proxy.config import ProxyConfig
from msocks.proxy.dialler import Dialler
from msocks.proxy.inbound_port import InboundPort, address_toward, is_anybody
from msocks.proxy.inbound_rules import InboundRules
from msocks.proxy.proxied_session import ProxiedSession
from msocks.proxy.resolver import ResolutionError
from msocks.transport.deadlines import Deadlines
from msocks.transport.kernel import reset_on_close
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint

_log = structlog.get_logger("msocks.proxy.inbound")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no listener, or none any more.

    Attributes:
        status: For programs.
        text: For a person.
    """

    status: ListenStatus
    text: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks for.

    Attributes:
        user: Whose it is to be; empty where nobody was asked.
        port: Which port; 0 for any.
        once: For one connection.
        peer: The only one that may connect; see `is_anybody`.
        near: The proxy's address that the client has reached.
        client: Where that comes from.
    """

    user: str
    port: int
    once: bool
    peer: Endpoint
    near: Address
    client: Endpoint


class ListenerOwner(Protocol):
    """Who is told what becomes of a listener, never within a call to it."""

    @property
    def is_reachable(self) -> bool:
        """Whether its client can be reached now; a newer client of the same user gets the port of one that cannot."""

    def on_listening(self, listener: Listener) -> None:
        """It is open."""

    def on_refused(self, refusal: Refusal) -> None:
        """It came to nothing, or has ended without a word of its owner's."""

    def on_accepted(self, listener: Listener, sock: socket.socket, peer: Endpoint) -> ProxiedSession | None:
        """A peer has connected. The session that it has become; None where there is none, and `sock` is not taken."""


@dataclass(eq=False, slots=True)
class Listener:
    """One listener. `untaken` are sessions of which the client has been told, and which no leg has taken yet."""

    wanted: Wanted
    owner: ListenerOwner
    opened_at: float
    port: InboundPort | None = None
    told: Endpoint | None = None
    peers: frozenset[Address] | None = None
    accepted: int = 0
    refused: int = 0
    closed: bool = False
    task: asyncio.Task[None] | None = None
    sessions: list[ProxiedSession] = field(default_factory=list)

    @property
    def untaken(self) -> list[ProxiedSession]:
        self.sessions = [session for session in self.sessions if session.awaits_first_leg]
        return self.sessions


class InboundRegistry:
    """See the module."""

    def __init__(self, reactor: Reactor, config: ProxyConfig, dialler: Dialler) -> None:
        self._reactor = reactor
        self._loop = reactor.loop
        self._dialler = dialler
        self._limits = config.limits
        self._bind = config.bind
        self._rules = InboundRules(config.publish)
        self._splice_ports = range(config.splice_ports[0], config.splice_ports[1] + 1)
        self._told_addresses = config.inbound_address
        self._all: dict[Listener, None] = {}
        self._count_of_user: dict[str, int] = {}
        self._waiting: Deadlines[Listener] = Deadlines(reactor.loop, config.bind_timeout_s, self._on_nobody)
        self._untaken: Deadlines[ProxiedSession] = Deadlines(reactor.loop, config.take_timeout_s, self._on_untaken)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Listener]:
        return iter(tuple(self._all))

    def users(self) -> list[str]:
        """The users who have listeners."""
        return list(self._count_of_user)

    # -- for those who have clients ---------------------------------------------------------------------------------

    def open(self, wanted: Wanted, owner: ListenerOwner) -> Listener:
        """Begin to listen; the owner is told what comes of it in the next turn of the event loop, or later."""
        listener = Listener(wanted, owner, self._loop.time())
        self._all[listener] = None
        self._count_of_user[wanted.user] = self._count_of_user.get(wanted.user, 0) + 1
        listener.task = self._loop.create_task(self._begin(listener))
        return listener

    def close_listener(self, listener: Listener) -> None:
        """Nobody wants it any more: connections that nobody has taken are reset."""
        self._forget(listener)
        for session in listener.untaken:
            session.end(EndReason.CLIENT_CLOSED, announce=False)

    def end(self, listener: Listener, status: ListenStatus, text: str) -> None:
        """Close it, and tell its owner why."""
        if not listener.closed:
            self.close_listener(listener)
            listener.owner.on_refused(Refusal(status, text))

    def end_user(self, user: str) -> None:
        """The operator removed the user."""
        for listener in self:
            if listener.wanted.user == user:
                self.end(listener, ListenStatus.NOT_ALLOWED, "the operator removed this user")

    def close(self) -> None:
        """Close all."""
        for listener in self:
            if listener.wanted.once:
                self.end(listener, ListenStatus.FAILED, "the proxy is going down")
            else:
                self.close_listener(listener)  # its client asks for it again
        self._waiting.take_all()
        self._untaken.take_all()

    # -- opening ----------------------------------------------------------------------------------------------------

    async def _begin(self, listener: Listener) -> None:
        refusal = await self._try_to_open(listener)
        listener.task = None
        if listener.closed:
            return
        wanted = listener.wanted
        if refusal is not None:
            _log.warning(
                "listener_refused",
                user=wanted.user,
                port=wanted.port,
                peer=str(wanted.peer.host),
                reason=refusal.text,
            )
            self.end(listener, refusal.status, refusal.text)
            return
        _log.info("listener_opened", user=wanted.user, address=str(listener.told), once=wanted.once)
        if wanted.once:
            self._waiting.add(listener)
        listener.owner.on_listening(listener)

    async def _try_to_open(self, listener: Listener) -> Refusal | None:
        wanted = listener.wanted
        refusal = self._without_room(wanted.user) or self._not_allowed(wanted)
        if refusal is not None:
            return refusal
        if not is_anybody(wanted.peer):
            peers = await self._peers(wanted.peer)
            if isinstance(peers, Refusal):
                return peers
            listener.peers = peers
        if listener.closed:
            return None
        self._take_from_the_lost(wanted)
        ports = [wanted.port] if wanted.port or wanted.once else self._rules.ports_of(wanted.user)
        failure: OSError | None = None
        for port in ports:
            if port in self._splice_ports:
                continue
            try:
                listener.port = InboundPort(self._reactor, port, lambda sock, peer: self._accept(listener, sock, peer))
            except OSError as error:
                failure = error
                continue
            listener.told = self._told(listener, listener.port.port)
            return None
        return _why_not(wanted.port, failure)

    def _without_room(self, user: str) -> Refusal | None:
        whole = len(self._all) > self._limits.listeners
        # Nobody in particular, where no password is asked, is many: only the limit of all holds for them.
        if whole or (user and self._count_of_user[user] > self._limits.listeners_per_user):
            whose = "proxy" if whole else "user"
            return Refusal(ListenStatus.LIMIT, f"the {whose} has as many listeners as are allowed; close others first")
        return None

    def _not_allowed(self, wanted: Wanted) -> Refusal | None:
        if wanted.once and not wanted.port:
            if self._bind:
                return None
            return Refusal(ListenStatus.NOT_ALLOWED, "the proxy's operator has switched BIND off")
        if wanted.port in self._splice_ports:
            ports = f"{self._splice_ports[0]}-{self._splice_ports[-1]}"
            text = f"port {wanted.port} belongs to the proxy's splice_ports, {ports}; use another"
            return Refusal(ListenStatus.NOT_ALLOWED, text)
        why = self._rules.refusal(wanted.user, wanted.port)
        return None if why is None else Refusal(ListenStatus.NOT_ALLOWED, why)

    async def _peers(self, peer: Endpoint) -> frozenset[Address] | Refusal:
        if peer.address is not None:
            found = [peer.address]
        else:
            try:
                found = await self._dialler.resolver.resolve(str(peer.host))
            except ResolutionError as error:
                return Refusal(ListenStatus.FAILED, str(error))
        plain = [getattr(address, "ipv4_mapped", None) or address for address in found]
        allowed = [address for address in plain if self._dialler.refusal(address, 1) is None]
        if allowed:
            return frozenset(allowed)
        why = self._dialler.refusal(plain[0], 1)
        return Refusal(ListenStatus.NOT_ALLOWED, f"the peer {peer.host} is not allowed: {why}")

    def _take_from_the_lost(self, wanted: Wanted) -> None:
        """An agent that was killed, or has lost its network for good, keeps no port from its successor."""
        for other in self:
            port = other.port.port if other.port is not None else 0
            if port and port == wanted.port and other.wanted.user == wanted.user and not other.owner.is_reachable:
                self.end(other, ListenStatus.CLOSED, "a newer client of this user has taken the port")

    def _told(self, listener: Listener, port: int) -> Endpoint:
        """Where peers find it: as the operator says, as the named peer sees this host, or as the client does."""
        wanted = listener.wanted
        peer = next(iter(listener.peers), None) if listener.peers else None
        version = (peer or wanted.near).version
        configured = next((each for each in self._told_addresses if each.version == version), None)
        own = None if peer is None else address_toward(peer)
        return Endpoint(configured or own or wanted.near, port)

    # -- connections ------------------------------------------------------------------------------------------------

    def _accept(self, listener: Listener, sock: socket.socket, peer: Endpoint) -> None:
        why = self._unwanted(listener, peer)
        if why is not None:
            listener.refused += 1
            _log.info(
                "peer_refused",
                user=listener.wanted.user,
                port=listener.port and listener.port.port,
                peer=str(peer),
                reason=why,
            )
            _reset(sock)
            return
        session = listener.owner.on_accepted(listener, sock, peer)
        if session is None:
            listener.refused += 1
            _reset(sock)
        else:
            listener.accepted += 1
            _log.info("peer_accepted", user=listener.wanted.user, peer=str(peer), session=session.record.session.short)
            if session.awaits_first_leg:
                listener.sessions.append(session)
                self._untaken.add(session)
        if listener.wanted.once:
            self._forget(listener)

    def _unwanted(self, listener: Listener, peer: Endpoint) -> str | None:
        assert peer.address is not None
        if listener.peers is not None:
            return None if peer.address in listener.peers else "it is not the peer that is expected"
        if listener.wanted.once and (barred := self._dialler.refusal(peer.address, peer.port)) is not None:
            return barred
        if len(listener.untaken) >= self._limits.waiting_per_listener:
            return "too many connections wait to be taken"
        return None

    def _on_nobody(self, listener: Listener) -> None:
        self.end(listener, ListenStatus.TIMED_OUT, "nobody connected in time")

    def _on_untaken(self, session: ProxiedSession) -> None:
        if session.awaits_first_leg:
            session.end(EndReason.EXPIRED)

    def _forget(self, listener: Listener) -> None:
        if listener.closed:
            return
        listener.closed = True
        if listener.task is not None:
            listener.task.cancel()
        if listener.port is not None:
            listener.port.close()
        self._waiting.discard(listener)
        del self._all[listener]
        user = listener.wanted.user
        left = self._count_of_user[user] - 1
        if left:
            self._count_of_user[user] = left
        else:
            del self._count_of_user[user]


def _reset(sock: socket.socket) -> None:
    reset_on_close(sock)
    sock.close()


def _why_not(port: int, failure: OSError | None) -> Refusal:
    if failure is None or failure.errno == errno.EADDRINUSE:
        which = f"port {port} is" if port else "all ports that you may have are"
        return Refusal(ListenStatus.IN_USE, f"{which} in use at the proxy; choose another, or stop who has it")
    if failure.errno == errno.EACCES:
        return Refusal(ListenStatus.FAILED, f"the proxy may not listen at port {port}; use one above 1023")
    return Refusal(ListenStatus.FAILED, f"the proxy cannot listen: {failure.strerror}")
