"""The agent's local port: listens, and leads programs through their dialogue until they have said where to."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import structlog

from msocks.agent.dialogue import Answer, Dialogue, dialogue_for
from msocks.agent.farewell import Farewells
from msocks.agent.settings import AgentLimits
from msocks.errors import ConfigurationError, ProtocolError
from msocks.protocol.inbound import Incoming
from msocks.protocol.socks5_wire import Command
from msocks.transport.acceptor import Acceptor
from msocks.transport.deadlines import Deadlines
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint
from msocks.values.origin import Origin, Wish

_log = structlog.get_logger("msocks.agent.local_port")

_BACKLOG = 1024
# A request fits in one read; what a program sends behind it waits in the kernel.
_CHUNK_BYTES = 4096
# "localhost" has an IPv6 address also on hosts without IPv6.
_NOT_THIS_FAMILY = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(frozen=True, slots=True, eq=False)
class ProgramRequest:
    """A program wants a connection.

    Attributes:
        sock: Its connection, non-blocking; whoever takes the request owns it.
        dialogue: Takes the answer, and has the bytes that came early.
        destination: Where to; names are not resolved. With UDP ASSOCIATE, where the program sends from; with BIND,
            who shall connect.
        origin: The program, where whoever brought the connection here knows it.
        wish: What the program's user asks for it.
        waits_in_connect: `sock` is not connected before the dialogue has granted.
        command: CONNECT, BIND or UDP ASSOCIATE.
        incoming: The peer's connection to the proxy that the program has waited for; `destination` is the peer then.
    """

    sock: socket.socket
    dialogue: Answer
    destination: Endpoint
    origin: Origin | None = None
    wish: Wish | None = None
    waits_in_connect: bool = False
    command: Command = Command.CONNECT
    incoming: Incoming | None = None


@dataclass(slots=True, eq=False)
class _Handshake:
    """One program until it has said where to."""

    sock: socket.socket
    dialogue: Dialogue | None = None


class LocalPort:
    """See the module. Memory and descriptors are bounded by `AgentLimits.handshakes`."""

    def __init__(
        self,
        reactor: Reactor,
        limits: AgentLimits,
        farewells: Farewells,
        on_request: Callable[[ProgramRequest], None],
    ) -> None:
        self._reactor = reactor
        self._farewells = farewells
        self._on_request = on_request
        self._acceptor = Acceptor(reactor, self._accepted, cannot_accept)
        self._handshakes = Deadlines[_Handshake](
            reactor.loop, limits.handshake_timeout_s, self._drop, limit=limits.handshakes
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it listens, port 0 replaced by what the kernel gave."""
        return tuple(Endpoint.from_sockaddr(listener.getsockname()) for listener in self._acceptor.listeners)

    @property
    def handshakes(self) -> int:
        """Programs that have not yet said where to."""
        return len(self._handshakes)

    def open(self, endpoints: Iterable[Endpoint], *, allow_remote: bool) -> None:
        """Listen.

        Raises:
            ConfigurationError: An address cannot be listened on, or is no loopback address although `allow_remote` is
                false. Nothing listens then.
        """
        made: list[socket.socket] = []
        try:
            for endpoint in endpoints:
                made += _listeners(endpoint, allow_remote=allow_remote)
        except BaseException:
            for listener in made:
                listener.close()
            raise
        self._acceptor.add(made)

    def close(self) -> None:
        """Stop listening, and close what has not said where to."""
        self._acceptor.close()
        for handshake in self._handshakes.take_all():
            self._drop(handshake)

    def _accepted(self, sock: socket.socket, _peer: tuple[Any, ...]) -> None:
        without_delay(sock)
        self._begin(_Handshake(sock))

    # -- the dialogue -----------------------------------------------------------------------------------------------

    def _begin(self, handshake: _Handshake) -> None:
        self._handshakes.add(handshake)
        self._reactor.watch(handshake.sock.fileno(), lambda _events: self._hear(handshake))

    def _hear(self, handshake: _Handshake) -> None:
        sock = handshake.sock
        while True:
            try:
                data = sock.recv(_CHUNK_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._handshakes.discard(handshake)
                self._drop(handshake)
                return
            try:
                if handshake.dialogue is None:
                    handshake.dialogue = dialogue_for(data[0])
                destination = handshake.dialogue.receive(data)
            except ProtocolError as error:
                _log.info("program_refused", reason=str(error))
                self._handshakes.discard(handshake)
                self._farewells.say(sock, handshake.dialogue.data_to_send() if handshake.dialogue else b"")
                return
            if answer := handshake.dialogue.data_to_send():
                # Two bytes into an empty buffer; that a program is gone shows at the next read.
                with contextlib.suppress(OSError):
                    sock.send(answer)
            if destination is not None:
                self._handshakes.discard(handshake)
                command = handshake.dialogue.command
                self._on_request(ProgramRequest(sock, handshake.dialogue, destination, command=command))
                return

    def _drop(self, handshake: _Handshake) -> None:
        self._reactor.unwatch(handshake.sock.fileno())
        handshake.sock.close()


def cannot_accept(error: OSError) -> None:
    """Say that there is no descriptor, or no memory, for a program's connection."""
    _log.warning("cannot_accept", reason=error.strerror, remedy="raise LimitNOFILE")


def without_delay(sock: socket.socket) -> None:
    """What is written to a program goes to it at once (TCP_NODELAY)."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _listeners(endpoint: Endpoint, *, allow_remote: bool) -> list[socket.socket]:
    """Listening sockets on all addresses that `endpoint` stands for and this host has, at least one."""
    host = str(endpoint.host)
    try:
        found = socket.getaddrinfo(host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"the agent cannot listen on {endpoint}: {error.strerror}", remedy="give an address of this host"
        ) from None
    addresses = list(dict.fromkeys(ip_address(str(sockaddr[0])) for *_, sockaddr in found))
    if not allow_remote and not all(address.is_loopback for address in addresses):
        raise ConfigurationError(
            f"the agent does not listen on {endpoint}, since other hosts could use your access there",
            remedy="listen on 127.0.0.1 or [::1], or give --allow-remote if that is what you want",
        )
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for address in addresses:
        try:
            listeners.append(_listener(address, endpoint.port))
        except OSError as error:
            failure = error
            if error.errno not in _NOT_THIS_FAMILY:
                break
    if failure is not None and (not listeners or failure.errno not in _NOT_THIS_FAMILY):
        for listener in listeners:
            listener.close()
        raise ConfigurationError(
            f"the agent cannot listen on {endpoint}: {failure.strerror}",
            remedy="another agent or program has that port; give another with --listen, or stop the other"
            if failure.errno == errno.EADDRINUSE
            else "give an address of this host and a port that you may use",
        )
    return listeners


def _listener(address: Address, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.version == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not address.is_unspecified)
        listener.bind((str(address), port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
