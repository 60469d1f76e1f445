"""A control channel at the proxy: TLS, the client's HELLO, and what both sides have to tell each other afterwards."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Protocol

import structlog

from msocks.errors import ProtocolError
from msocks.protocol.control import (
    CONTROL_VERSION,
    ControlMessage,
    Goodbye,
    Hello,
    Park,
    Parked,
    ParkedLeg,
    Ping,
    Pong,
    Received,
    ReceivedStream,
    RefusalCode,
    Refused,
    SessionEnded,
    Welcome,
)
from msocks.protocol.control_channel import ControlChannel, Side
from msocks.protocol.inbound import Listen, Unlisten
from msocks.proxy.admission import Source
from msocks.proxy.associations import Association, AssociationLimit, AssociationRegistry, AssociationTaken
from msocks.proxy.incoming import Incoming
from msocks.proxy.mobile_listener import MobileHost, listen
from msocks.store.state_directory import StoreError
from msocks.transport.deadlines import Deadlines
from msocks.transport.reactor import FAILED, READABLE, WRITABLE, Reactor
from msocks.transport.tls import TlsMachine
from msocks.values.endpoint import Endpoint
from msocks.version import __version__

_log = structlog.get_logger("msocks.proxy.control")

_READ_BYTES = 16 * 1024
# A client that does not read its messages gets no more of them.
_UNSENT_LIMIT_BYTES = 1024 * 1024
# Every refused HELLO takes so long, whatever was wrong with it.
REFUSAL_DELAY_S = 0.3


@dataclass(frozen=True, slots=True)
class UserLimits:
    """What one user may have at the same time."""

    max_sessions: int
    max_channels: int


class ControlHost(MobileHost, Protocol):
    """What a control channel needs of the proxy."""

    @property
    def reactor(self) -> Reactor:
        """The reactor."""

    @property
    def tls_context(self) -> ssl.SSLContext:
        """From `msocks.transport.tls.server_context`."""

    @property
    def associations(self) -> AssociationRegistry:
        """All associations."""

    @property
    def keep_alive(self) -> KeepAlive:
        """Who watches over silent channels."""

    @property
    def stopping(self) -> bool:
        """Whether the proxy is going down."""

    @property
    def detach_grace_s(self) -> float:
        """What is told to clients."""

    def clock_ms(self) -> int:
        """The proxy's clock, as it is told on the wire."""

    def authenticate(self, source: Source, user: str, secret: bytes) -> UserLimits | None:
        """The user's limits, where the secret is right. Raises StoreError where nobody can tell."""

    def park(self, user: str, leg: ParkedLeg) -> bool:
        """A leg is gone; whether the session waits for another now."""

    def confirm(self, user: str, stream: ReceivedStream) -> ReceivedStream | SessionEnded | None:
        """What a client has received; the answer to that."""

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` as a task."""


class ControlConnection:
    """Takes the socket of `incoming` over. Implements `Speaker` of `incoming` and `Channel` of associations."""

    gives_up_at_eof = False

    def __init__(self, host: ControlHost, incoming: Incoming) -> None:
        self._host = host
        self._incoming = incoming
        self._tls = TlsMachine(host.tls_context)
        self._channel = ControlChannel(Side.PROXY)
        self._association: Association | None = None
        self._unsent = bytearray()
        self._closed = False
        self._refusing = False
        self._pings = 0

    @property
    def wants_data(self) -> bool:
        return not self._refusing

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be said any more."""
        return self._closed

    # -- bytes ------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        try:
            plaintext = self._tls.receive(data)
            for message in self._channel.receive(plaintext):
                self._on_message(message)
                if self._closed or self._refusing:
                    break
        except ProtocolError as error:
            _log.info("channel_failed", client=str(self._incoming.peer), reason=error.what)
            self._close()
            return
        if self._association is not None:
            self._host.keep_alive.heard(self)
        self._flush()
        if self._tls.closed and not self._refusing:
            self._close()

    def lost(self) -> None:
        """The connection is gone."""
        self._forget()

    def _on_events(self, events: int) -> None:
        if events & WRITABLE and self._unsent:
            self._flush()
        while not self._closed and events & (READABLE | FAILED):
            try:
                data = self._incoming.sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close()
                return
            self.receive(data)

    def _flush(self) -> None:
        if self._closed:
            return
        self._unsent += self._tls.outgoing()
        try:
            while self._unsent:
                del self._unsent[: self._incoming.sock.send(self._unsent)]
        except BlockingIOError:
            if len(self._unsent) > _UNSENT_LIMIT_BYTES:
                _log.warning("channel_too_slow", client=str(self._incoming.peer))
                self._close()
        except OSError:
            self._close()

    # -- messages ---------------------------------------------------------------------------------------------------

    def _on_message(self, message: ControlMessage) -> None:
        match message:
            case Hello():
                self._greet(message)
            case Ping(nonce=nonce, time=time):
                self.say(Pong(nonce, time))
            case Park(legs=legs) if self._association is not None:
                user = self._association.user
                parked = [(leg.session, leg.generation) for leg in legs if self._host.park(user, leg)]
                self.say(Parked(tuple(parked)))
            case Received(streams=streams) if self._association is not None:
                self._confirm(self._association.user, streams)
            case Listen() if self._association is not None:
                near = Endpoint.from_sockaddr(self._incoming.sock.getsockname()).address
                assert near is not None
                listen(self._host, self._association, self, message, near, self._incoming.peer)
            case Unlisten(number=number) if self._association is not None:
                known = self._association.listeners.get(number)
                if known is not None:
                    known.close()
            case Goodbye():
                self._close()

    def _confirm(self, user: str, streams: tuple[ReceivedStream, ...]) -> None:
        answers = [self._host.confirm(user, stream) for stream in streams]
        self.say(Received(tuple(answer for answer in answers if isinstance(answer, ReceivedStream))))
        for answer in answers:
            if isinstance(answer, SessionEnded):
                self.say(answer)

    def _greet(self, hello: Hello) -> None:
        host = self._host
        if hello.version != CONTROL_VERSION:
            self._refuse(RefusalCode.VERSION, f"this proxy speaks version {CONTROL_VERSION}")
            return
        if host.stopping:
            self._refuse(RefusalCode.SHUTTING_DOWN, "the proxy is going down")
            return
        try:
            limits = host.authenticate(self._incoming.source, hello.user, hello.secret)
        except StoreError as error:
            _log.error("users_unreadable", reason=str(error))
            self._refuse(RefusalCode.UNSPECIFIED, "the proxy cannot read its users")
            return
        if limits is None:
            _log.warning("hello_refused", client=str(self._incoming.peer), user=hello.user)
            self._refuse(RefusalCode.AUTHENTICATION, "no such user, or a wrong secret")
            return
        try:
            association = host.associations.open_channel(hello.association, hello.user, self, limits.max_channels)
        except AssociationTaken:
            self._refuse(RefusalCode.ASSOCIATION_TAKEN, "the association id is in use")
            return
        except AssociationLimit as limit:
            _log.warning("channel_limit", client=str(self._incoming.peer), user=hello.user, reason=str(limit))
            self._refuse(RefusalCode.LIMIT, str(limit))
            return
        association.told_mtu(hello.smallest_mtu)
        self._association = association
        self.say(
            Welcome(
                association=association.id,
                key_up=association.key_up,
                key_down=association.key_down,
                proxy_ms=host.clock_ms(),
                detach_grace_s=int(host.detach_grace_s),
                max_sessions=limits.max_sessions,
                observed=self._incoming.peer,
                server_version=__version__,
            )
        )
        self._take_over()
        for listener in tuple(association.listeners.values()):
            listener.say_untaken(self)
        _log.info(
            "channel_opened",
            user=hello.user,
            client=str(self._incoming.peer),
            link=hello.link,
            agent=f"{hello.agent_name} {hello.agent_version}".strip(),
        )

    def _take_over(self) -> None:
        """From now on the channel may live for long, and write more than a socket takes at once."""
        sock = self._incoming.give_away()
        self._host.reactor.watch(sock.fileno(), self._on_events)
        self._host.keep_alive.heard(self)

    def _refuse(self, code: RefusalCode, text: str) -> None:
        self._refusing = True
        self._host.spawn(self._refuse_late(code, text))

    async def _refuse_late(self, code: RefusalCode, text: str) -> None:
        await asyncio.sleep(REFUSAL_DELAY_S)
        if not self._closed:
            self._closed = True
            self._tls.send(self._channel.send(Refused(code, text)))
            self._tls.close()
            self._incoming.answer_and_close(bytes(self._unsent) + self._tls.outgoing())

    # -- Channel ----------------------------------------------------------------------------------------------------

    def say(self, message: ControlMessage) -> None:
        """Send a message."""
        if not self._closed:
            self._tls.send(self._channel.send(message))
            self._flush()

    def dismiss(self) -> None:
        """The user was removed."""
        self.part(Refused(RefusalCode.USER_REMOVED, "the operator removed this user"))

    def part(self, last_word: ControlMessage) -> None:
        """Say the last word and close."""
        self.say(last_word)
        self._close()

    def ping(self) -> None:
        """Nothing has come for long: ask."""
        self._pings += 1
        self.say(Ping(self._pings, self._host.clock_ms()))

    def expire(self) -> None:
        """Nothing has come for too long."""
        _log.info("channel_silent", client=str(self._incoming.peer))
        self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._forget()
        self._tls.close()
        if self._association is not None:
            self._incoming.take_back()
        self._incoming.answer_and_close(bytes(self._unsent) + self._tls.outgoing())

    def _forget(self) -> None:
        self._closed = True
        self._host.keep_alive.forget(self)
        if self._association is not None:
            self._host.associations.channel_closed(self._association, self)


class KeepAlive:
    """Asks channels that have been silent for half of `idle_s`, and closes those that stay so."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle_s: float) -> None:
        self._quiet: Deadlines[ControlConnection] = Deadlines(loop, idle_s / 2, ControlConnection.ping)
        self._silent: Deadlines[ControlConnection] = Deadlines(loop, idle_s, ControlConnection.expire)

    def heard(self, channel: ControlConnection) -> None:
        """Something came from the channel."""
        if not channel.is_closed:
            self._quiet.add(channel)
            self._silent.add(channel)

    def forget(self, channel: ControlConnection) -> None:
        """The channel is closed."""
        self._quiet.discard(channel)
        self._silent.discard(channel)

    def close(self) -> None:
        """Ask nobody any more."""
        self._quiet.take_all()
        self._silent.take_all()
