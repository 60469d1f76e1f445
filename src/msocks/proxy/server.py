"""The proxy as a whole: puts its parts together, runs them, and lets them go in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from msocks.datapath.interface import Datapath
from msocks.errors import ConfigurationError, EndReason
from msocks.protocol.control import Goodbye, ParkedLeg, ReceivedStream, SessionEnded
from msocks.protocol.greeting import Announcement
from msocks.protocol.leg import Connect, DatapathKind
from msocks.protocol.socks5_server import Socks5Server
from msocks.proxy.admin_api import AdminApi, lock_state
from msocks.proxy.admission import Admission, Source
from msocks.proxy.adoption import adopt_sessions, open_session_store
from msocks.proxy.associations import Association, AssociationRegistry
from msocks.proxy.config import ProxyConfig
from msocks.proxy.control_connection import ControlConnection, KeepAlive, UserLimits
from msocks.proxy.datapath_choice import open_datapath
from msocks.proxy.destination_rules import DestinationRules
from msocks.proxy.dialler import Dialler
from msocks.proxy.inbound import InboundRegistry
from msocks.proxy.incoming import Incoming, Reception, Speaker, new_lingering
from msocks.proxy.leg_connection import LegConnection
from msocks.proxy.listener import Listener, open_listeners
from msocks.proxy.probe_responder import ProbeResponder
from msocks.proxy.proxied_session import ProxiedSession
from msocks.proxy.session_registry import SessionRegistry
from msocks.proxy.socks_connection import ANYBODY, SocksConnection
from msocks.proxy.udp_registry import UdpRegistry
from msocks.proxy.users import UserDirectory
from msocks.proxy.waiting_leg import WaitingLeg
from msocks.store.identity import ProxyIdentity
from msocks.store.sessions import SessionStore
from msocks.store.state_directory import StateDirectory, StoreError
from msocks.store.users import UserStore
from msocks.transport import tls
from msocks.transport.descriptor_limit import raise_descriptor_limit
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId

_log = structlog.get_logger("msocks.proxy")

# The operator's commands tell of changes at once; this finds those of anybody else.
_USERS_PERIOD_S = 1.0
_LOOK_S = 0.02
# For last words to arrive.
_PARTING_S = 1.0


class Proxy:
    """One proxy in the running event loop: `start`, then `serve` until `stop`."""

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        self._stopped = asyncio.Event()
        self._exit = contextlib.AsyncExitStack()
        self._core: _Core | None = None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it listens, free ports resolved."""
        return self._core.endpoints if self._core is not None else ()

    async def start(self) -> None:
        """Open everything; connections are accepted when this returns.

        Raises:
            ConfigurationError: The configuration cannot be carried out on this host.
            StoreError: A file in the state directory is damaged or too new.
            ListenError: An endpoint cannot be had.
        """
        raise_descriptor_limit()  # each session needs two
        async with contextlib.AsyncExitStack() as stack:
            state = StateDirectory.prepare(self._config.state)
            lock = lock_state(state.path)
            if lock is None:
                raise ConfigurationError(
                    f"another proxy runs on the state directory {state.path}", remedy="stop it, or give another --state"
                )
            stack.callback(os.close, lock)
            identity = ProxyIdentity.load_or_create(state)
            reactor = Reactor(asyncio.get_running_loop())
            stack.callback(reactor.close)
            store = UserStore(state.users, create=True)
            stack.callback(store.close)
            records = open_session_store(self._config.store, state)
            stack.callback(records.close)
            datapath = open_datapath(self._config, reactor)
            core = _Core(self._config, reactor, store, records, tls.server_context(identity.path), datapath)
            stack.callback(core.close)
            core.listen()
            api = AdminApi(
                state.admin_socket,
                sessions=lambda: core.sessions,
                udp=lambda: core.udp,
                datapath=datapath,
                now=reactor.loop.time,
                users_changed=core.look_at_users,
            )
            await api.start()
            stack.push_async_callback(api.stop)
            core.begin()
            self._core = core
            self._exit = stack.pop_all()
        for endpoint in self.endpoints:
            _log.info("listening", endpoint=str(endpoint))
        if self._config.open:
            _log.warning(
                "open_proxy",
                remedy="--open lets anybody who reaches this port use it without a password; "
                "keep it to networks where everybody may",
            )

    @property
    def splices(self) -> bool:
        """Whether the datapath is one in the kernel; while it runs."""
        return self._core is not None and self._core.datapath_kind is DatapathKind.SPLICE

    async def serve(self) -> None:
        """Wait until `stop` has come to its end."""
        await self._stopped.wait()

    async def stop(self, *, leave: bool = False) -> None:
        """Accept nothing more, give sessions the grace to end, reset the others, say good-bye, close everything.

        With `leave`, spliced sessions go on, and the next process adopts them.
        """
        core, self._core = self._core, None
        if core is not None:
            try:
                await core.wind_down(leave=leave)
            finally:
                await self._exit.aclose()
        self._stopped.set()


class _Core:
    """What lives between `start` and `stop`; the host of all connections."""

    def __init__(
        self,
        config: ProxyConfig,
        reactor: Reactor,
        store: UserStore,
        records: SessionStore,
        tls_context: ssl.SSLContext,
        datapath: Datapath,
    ) -> None:
        loop, limits = reactor.loop, config.limits
        self.reactor = reactor
        self.tls_context = tls_context
        self.stopping = False
        self.detach_grace_s = config.detach_grace_s
        self.endpoints: tuple[Endpoint, ...] = ()
        self.associations = AssociationRegistry(loop, config.detach_grace_s, limits.associations_per_user)
        self.keep_alive = KeepAlive(loop, config.channel_idle_s)
        self._config = config
        self._datapath = datapath
        self._users = UserDirectory(loop, store, limits)
        self._dialler = Dialler(
            reactor,
            DestinationRules(config.allow, config.deny),
            timeout_s=config.connect_timeout_s,
            resolutions=limits.resolutions,
            own_endpoints=lambda: self.endpoints,
        )
        self._records = records
        self.sessions = SessionRegistry(reactor, config, self._dialler, datapath, records, self._users.fingerprint)
        self.udp = UdpRegistry(reactor, config, self._dialler, self.associations.find)
        self.inbound = InboundRegistry(reactor, config, self._dialler)
        self._admission = Admission(
            loop,
            timeout_s=config.handshake_timeout_s,
            total=limits.half_open,
            per_source=limits.half_open_per_source,
        )
        self._lingering = new_lingering(reactor)
        self._reception = Reception(reactor, self._admission, self._lingering, self)
        self._listeners: list[Listener] = []
        self._responders: list[ProbeResponder] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def datapath_kind(self) -> DatapathKind:
        return self._datapath.kind

    def listen(self) -> None:
        """Take the ports."""
        self._listeners = open_listeners(self._config.listen)
        self.endpoints = tuple(listener.endpoint for listener in self._listeners)

    def begin(self) -> None:
        """Go on with what an earlier process has left, accept connections and answer probes.

        Raises:
            StoreError: Records of sessions cannot be read.
        """
        adopt_sessions(self._datapath, self._records, self._users, self.associations, self.sessions)
        for listener in self._listeners:
            self._datapath.prepare_listener(listener.tcp)
            listener.begin(self.reactor, self._on_accepted)
            find, received = self.associations.find, self.sessions.received
            self._responders.append(ProbeResponder(self.reactor, listener.udp, find, received, self.udp.receive))
        self.spawn(self._watch_users())

    async def wind_down(self, *, leave: bool) -> None:
        """Let the sessions end by themselves for the grace, then end them; with `leave`, not those that outlive us."""
        self.stopping = True
        for listener in self._listeners:
            listener.stop()
        self._admission.close()
        self.inbound.close()
        if leave:
            await asyncio.sleep(_PARTING_S)  # what this process alone has of them is said again meanwhile
            self.sessions.leave()
        await _until(lambda: not len(self.sessions), self._config.stop_grace_s)
        if len(self.sessions):
            _log.warning("sessions_reset", count=len(self.sessions))
        self.sessions.end_all(EndReason.PROXY_FAILED)
        for channel in self.associations.channels():
            channel.part(Goodbye())
        await _until(lambda: not len(self._lingering), _PARTING_S)

    def close(self) -> None:
        """Close what is still open."""
        self.stopping = True
        for responder in self._responders:
            responder.close()
        for listener in self._listeners:
            listener.close()
        self._admission.close()
        self.sessions.end_all(EndReason.PROXY_FAILED)
        for connection in self._lingering.take_all():
            connection.close()
        self.inbound.close()
        self.udp.close()
        self.keep_alive.close()
        self.associations.close()
        self._dialler.close()
        self._datapath.close()
        self._users.close()
        for task in self._tasks:
            task.cancel()

    def clock_ms(self) -> int:
        # CLOCK_BOOTTIME goes on while the host sleeps, as the clients' clocks do.
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self.reactor.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- connections ------------------------------------------------------------------------------------------------

    def _on_accepted(self, sock: socket.socket, sockaddr: tuple[Any, ...]) -> None:
        Incoming(self._reception, sock, sockaddr).begin()

    def make_speaker(self, announcement: Announcement, incoming: Incoming) -> Speaker | None:
        match announcement:
            case Announcement.SOCKS5:
                return SocksConnection(self, incoming)
            case Announcement.LEG:
                return LegConnection(self, incoming)
            case Announcement.TLS:
                return ControlConnection(self, incoming)
            case _:
                _log.info("greeting_unknown", client=str(incoming.peer))
                return None

    def association(self, association: AssociationId) -> Association | None:
        return self.associations.find(association)

    def connect(self, leg: WaitingLeg, user: str, request: Connect) -> ProxiedSession | None:
        return self.sessions.connect(leg, user, request, self._users.limits(user).max_sessions)

    def park(self, user: str, leg: ParkedLeg) -> bool:
        return self.sessions.park(user, leg)

    def confirm(self, user: str, stream: ReceivedStream) -> ReceivedStream | SessionEnded | None:
        return self.sessions.confirm(user, stream)

    def socks_machine(self) -> Socks5Server:
        return Socks5Server(allow_none=self._config.open, allow_password=self._users.accepts_passwords)

    def open_plain(self, leg: WaitingLeg, user: str, destination: Endpoint) -> ProxiedSession | None:
        return self.sessions.open_plain(leg, user, destination, self._max_sessions(user))

    def accept_plain(self, leg: WaitingLeg, user: str, sock: socket.socket, peer: Endpoint) -> ProxiedSession | None:
        return self.sessions.accept_plain(leg, user, sock, peer, self._max_sessions(user))

    def accept_mobile(
        self, association: Association, client: Endpoint, sock: socket.socket, peer: Endpoint
    ) -> ProxiedSession | None:
        return self.sessions.accept_mobile(association, client, sock, peer, self._max_sessions(association.user))

    def _max_sessions(self, user: str) -> int:
        return self._config.limits.sessions if user == ANYBODY else self._users.limits(user).max_sessions

    # -- users ------------------------------------------------------------------------------------------------------

    def authenticate(self, source: Source, user: str, secret: bytes) -> UserLimits | None:
        return self._users.authenticate(source, user, secret)

    async def password_matches(self, source: Source, user: bytes, password: bytes) -> str | None:
        return await self._users.password_matches(source, user, password)

    def look_at_users(self) -> None:
        """Let go of users who were removed.

        Raises:
            StoreError: The store cannot be read.
        """
        if not self._users.refresh():
            return
        for user in {*self.associations.users(), *self.sessions.users(), *self.udp.users(), *self.inbound.users()} - {
            ANYBODY
        }:
            if not self._users.is_same(user):
                _log.info("user_removed", user=user)
                self._users.forget(user)
                self.sessions.end_user(user)
                self.udp.end_user(user)
                self.inbound.end_user(user)
                self.associations.remove_user(user)

    async def _watch_users(self) -> None:
        while True:
            await asyncio.sleep(_USERS_PERIOD_S)
            try:
                self.look_at_users()
            except StoreError as error:
                _log.error("users_unreadable", reason=str(error))


async def _until(condition: Callable[[], bool], at_most_s: float) -> None:
    """Wait until `condition` holds, looking often; what makes it true are callbacks of a hundred connections."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
