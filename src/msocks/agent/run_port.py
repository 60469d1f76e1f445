"""Where `msocks run` and `msocks transparent` come: their keepers register here, and tell of programs in connect().

The keeper of a router brings listening sockets instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from msocks.agent.control_socket import bind_control_socket
from msocks.agent.held_connect import HeldConnect
from msocks.agent.local_port import ProgramRequest
from msocks.agent.program_lookup import user_name
from msocks.agent.routed_port import RoutedPort
from msocks.errors import ConfigurationError, MsocksError
from msocks.interception import messages
from msocks.interception.messages import Connect, Reach, Ready, Refuse, Refused, Router, Run
from msocks.interception.network_namespace import netns_cookie
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint
from msocks.values.origin import Origin

_log = structlog.get_logger("msocks.agent.run_port")

_MOST_RUNS = 256
_MOST_SOCKETS = 2
# How often to look whether there is a network and a proxy, for those who want to know.
_LOOK_S = 0.5
# They are told so often although nothing has changed: who hears nothing knows that this process hangs.
_BEAT_S = 1.0
_IPV4, _IPV6 = "127.0.0.1", "::1"


@dataclass(slots=True, eq=False)
class _Registration:
    """One run or router, from its keeper's connection to its end."""

    sock: socket.socket
    greeting: Run | Router | None = None
    routed: RoutedPort | None = None
    told_reach: tuple[bool, float] | None = None  # and when
    # Bound and not listening: they keep the port, and the kernel answers nothing there but resets.
    places: tuple[socket.socket, ...] = ()


class RunPort:
    """See the module."""

    def __init__(
        self,
        reactor: Reactor,
        proxy: tuple[Endpoint, ...],
        check: Callable[[Run], None],
        on_request: Callable[[ProgramRequest], None],
        *,
        reaches: Callable[[], bool],
        on_router_ended: Callable[[], None],
    ) -> None:
        """
        Args:
            reactor: Watches the sockets.
            proxy: The proxy's endpoints: no run may redirect what goes there.
            check: Raises MsocksError where a run asks for what there is not.
            on_request: Takes the requests.
            reaches: Whether there is a network and a proxy.
            on_router_ended: Called when routed connections are cut off from their other hosts.
        """
        self._reaches = reaches
        self._on_router_ended = on_router_ended
        self._look_timer: asyncio.TimerHandle | None = None
        self._reactor = reactor
        self._proxy = tuple(str(endpoint) for endpoint in proxy)
        self._check = check
        self._on_request = on_request
        self._path: Path | None = None
        self._listener: socket.socket | None = None
        self._registrations: set[_Registration] = set()

    @property
    def runs(self) -> int:
        """Runs that are registered, a host's or a router's transparent mode among them."""
        return len(self._registrations)

    def open(self, path: Path) -> None:
        """Listen at `path`. Raises ConfigurationError as `bind_control_socket` does."""
        self._listener = bind_control_socket(path, socket.SOCK_SEQPACKET)
        self._path = path
        self._reactor.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """End all registrations, and remove the socket."""
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        if self._listener is not None:
            self._reactor.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        for registration in list(self._registrations):
            self._end(registration)

    def _accept(self, _events: int) -> None:
        while self._listener is not None:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            registration = _Registration(sock)
            self._registrations.add(registration)
            if len(self._registrations) > _MOST_RUNS:
                self._refuse_run(
                    registration,
                    ConfigurationError(f"the agent serves {_MOST_RUNS} runs, as many as it may", remedy="end some"),
                )
                continue
            self._reactor.watch(sock.fileno(), functools.partial(self._hear, registration))

    def _hear(self, registration: _Registration, _events: int) -> None:
        while registration in self._registrations:
            brought: list[socket.socket] = []
            try:
                packet, brought = _receive(registration.sock)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._end(registration)
                return
            try:
                match registration.greeting:
                    case None:
                        greeting = messages.decode(packet, Run, Router)
                        assert isinstance(greeting, Run | Router)
                        self._begin(registration, greeting, brought)
                        if isinstance(greeting, Router):
                            brought = []  # they are the router's
                    case Run() as run:
                        self._connect(registration, run, messages.decode(packet, Connect))
                    case Router():
                        raise ConfigurationError("a router has nothing more to say", remedy="update both")
            except MsocksError as error:
                _log.warning("run_refused", reason=str(error))
                self._refuse_run(registration, error)
            finally:
                for each in brought:
                    each.close()

    def _begin(self, registration: _Registration, greeting: Run | Router, brought: list[socket.socket]) -> None:
        if isinstance(greeting, Router):
            registration.routed = RoutedPort(self._reactor, brought, greeting.tag, self._on_request)
            self._say(registration, Ready(0, 0, netns_cookie(registration.routed.listeners[0]), self._proxy))
        else:
            self._begin_run(registration, greeting)
        registration.greeting = greeting
        if greeting.reach:
            self._look()

    def _begin_run(self, registration: _Registration, run: Run) -> None:
        self._check(run)
        try:
            registration.places = (_place(_IPV4, 0),)
        except OSError as error:
            raise ConfigurationError(f"no port can be had on {_IPV4}: {error.strerror}", remedy="try again") from None
        with contextlib.suppress(OSError):  # a host without IPv6
            registration.places += (_place(_IPV6, 0),)
        ports = [place.getsockname()[1] for place in registration.places]
        port6 = ports[1] if len(ports) > 1 else 0
        self._say(registration, Ready(ports[0], port6, netns_cookie(registration.places[0]), self._proxy))

    def _look(self) -> None:
        """Tell those who want to know whether there is a network and a proxy, where that has changed or in a while."""
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        wanting = [each for each in self._registrations if each.greeting is not None and each.greeting.reach]
        usable, now = self._reaches(), self._reactor.loop.time()
        for registration in wanting:
            told = registration.told_reach
            if told is None or told[0] is not usable or now - told[1] >= _BEAT_S:
                registration.told_reach = usable, now
                self._say(registration, Reach(usable))
        if wanting:
            self._look_timer = self._reactor.loop.call_later(_LOOK_S, self._look)

    def _connect(self, registration: _Registration, run: Run, connect: Connect) -> None:
        program, destination = Endpoint.parse(connect.local), Endpoint.parse(connect.destination)
        place = registration.places[-1 if program.address is not None and program.address.version == 6 else 0]
        refuse = functools.partial(self._refuse, registration, connect.cookie)
        try:
            sock = _place(*place.getsockname()[:2])
        except OSError as error:
            _log.warning("cannot_open_socket", reason=error.strerror, remedy="raise LimitNOFILE")
            refuse(errno.ECONNREFUSED)
            return
        if destination.port == 0:  # no server has it
            sock.close()
            refuse(errno.ECONNREFUSED)
            return
        answer = HeldConnect(sock, program, refuse)
        origin = Origin(connect.process, connect.pid, user_name(connect.uid), connect.uid, run.tag)
        self._on_request(ProgramRequest(sock, answer, destination, origin, run.wish, waits_in_connect=True))

    def _refuse(self, registration: _Registration, cookie: int, number: int) -> None:
        if registration in self._registrations:
            self._say(registration, Refuse(cookie, number))

    def _refuse_run(self, registration: _Registration, error: MsocksError) -> None:
        self._say(registration, Refused(error.what, error.remedy))
        self._end(registration)

    def _say(self, registration: _Registration, message: Ready | Refused | Refuse | Reach) -> None:
        try:
            registration.sock.send(messages.encode(message))
        except OSError:
            pass  # a keeper that reads nothing asks again when the SYN comes again; one that is gone shows at recv()

    def _end(self, registration: _Registration) -> None:
        self._registrations.discard(registration)
        self._reactor.unwatch(registration.sock.fileno())
        registration.sock.close()
        for place in registration.places:
            place.close()
        if registration.routed is not None:
            registration.routed.close()
            registration.routed = None
            self._on_router_ended()


def _receive(sock: socket.socket) -> tuple[bytes, list[socket.socket]]:
    """A packet, and the sockets that came with it. Raises OSError, BlockingIOError."""
    packet, descriptors, _, _ = socket.recv_fds(sock, messages.MAX_BYTES, _MOST_SOCKETS, socket.MSG_CMSG_CLOEXEC)
    return packet, [socket.socket(fileno=descriptor) for descriptor in descriptors]


def _place(address: str, port: int) -> socket.socket:
    """A socket bound there, beside others of this kind."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock
