"""Keeps one link's control channel open: attempts, pauses between them, and what each outcome means."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from msocks.client.association import Association
from msocks.client.control_connection import ControlConnection, ProxyWord
from msocks.client.path_watch import PathWatch
from msocks.errors import (
    AuthenticationError,
    ControlClosed,
    ControlUnavailable,
    LinkCaptive,
    LinkUnavailable,
    MsocksError,
    PinMismatch,
    ProtocolError,
)
from msocks.protocol.control import ControlMessage, Hello, Pong, RefusalCode, Refused, Welcome
from msocks.transport.dial import Dialer
from msocks.transport.reactor import Reactor
from msocks.transport.tls import TlsMachine
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint
from msocks.values.link import Link, LinkState

_DIAL_S = 5.0
_HANDSHAKE_S = 10.0
_FIRST_PAUSE_S = 0.2
_MOST_PAUSE_S = 30.0
_AWAY_PAUSE_S = 1.5
"""The longest pause while the proxy's host answers, the proxy does not, and sessions wait for it. No path may be called
silent for want of answers meanwhile, so it is well below `msocks.session.path_health.REFUSED_S`."""
_STABLE_S = 10.0
# Whoever logs in wants to go on at once, and a portal that nobody logs in to shall cost next to nothing.
_CAPTIVE_SHARE = 16
_CAPTIVE_LEAST_S, _CAPTIVE_MOST_S = 1.0, 60.0
_REFUSED_FIRST_S, _REFUSED_MOST_S = 60.0, 600.0
_DOUBT_PATIENCE_S = 1.0
_ASK = "ask the proxy's operator for a new access link (`msocks user add`)"

KEEP_ALIVE_S = 110.0
"""An idle channel is pinged this often: below the 2 minutes after which the hastiest of the common NATs forget an idle
TCP connection (see `msocks.transport.dial`), and seldom enough for a metered link: 10 KB an hour."""


class ChannelState(StrEnum):
    """What a link's control channel is doing."""

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    """For the next attempt."""


@dataclass(frozen=True, slots=True)
class ChannelStatus:
    """A control channel for the eyes of a user.

    Attributes:
        state: What it is doing.
        error: Why the last attempt failed, or the last channel broke; None while it is open.
        peer: The proxy's address it leads to; None while there is no connection.
        observed: Where the proxy sees it come from; None before it was open.
        retry_in_s: Seconds until the next attempt; None unless it is waiting.
    """

    state: ChannelState
    error: MsocksError | OSError | None
    peer: Endpoint | None
    observed: Endpoint | None
    retry_in_s: float | None


class ControlOwner(Protocol):
    """Who is told what the proxy says. The calls come from the loop; none may block."""

    def on_control_message(self, link: str, message: ProxyWord) -> None:
        """The proxy's word. LegAccepted and SessionEnded come once on every channel."""

    def on_control_open(self, link: str, welcome: Welcome) -> None:
        """The channel of that link stands."""

    def on_control_lost(self, link: str, error: MsocksError | OSError | None) -> None:
        """It broke, or an attempt failed; None where the link went down."""


@dataclass(frozen=True, slots=True)
class ChannelContext:
    """What the channels of all links have in common."""

    reactor: Reactor
    dialer: Dialer
    watch: PathWatch
    association: Association
    access: AccessLink
    owner: ControlOwner
    tls: ssl.SSLContext
    hello: Callable[[str], Hello]
    """What a channel over the link of that name says first."""
    on_away: Callable[[], None]
    """Called when a channel finds the proxy away (`LinkChannel.is_away`)."""


class LinkChannel:
    """See the module. Works until `stop`. Implements `ControlListener` of its connection."""

    def __init__(self, context: ChannelContext, link: Link) -> None:
        self.link = link
        self.connection: ControlConnection | None = None
        self._context = context
        self._error: MsocksError | OSError | None = None
        self._observed: Endpoint | None = None
        self._failures = 0
        self._opened_at: float | None = None
        self._retry_at: float | None = None
        self._strange_since: float | None = None  # from then on somebody has answered, and never as the proxy
        self._hello_number = 0
        self.is_away = False  # the proxy, though its host answers, or somebody in its place; until it says WELCOME
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[MsocksError | OSError] = context.reactor.loop.create_future()
        self.task = context.reactor.loop.create_task(self._keep())

    def stop(self, *, goodbye: bool) -> None:
        """End it; with `goodbye` in good order."""
        self._close(goodbye=goodbye)
        self.task.cancel()

    def send(self, message: ControlMessage) -> bool:
        """Say something; False where the channel is not open."""
        return self.connection is not None and self.connection.send(message)

    def verify(self) -> None:
        """Make sure that the channel lives; open it now where there is none."""
        if self.connection is None:
            self._failures = 0
            self._wake.set()
        else:
            rtt_ms = self._context.watch.rtt_ms(self.link.name) or 0.0
            number = self._context.association.next_probe_number()
            self.connection.verify(number, _DOUBT_PATIENCE_S + 4 * rtt_ms / 1000)

    def on_link(self, link: Link) -> None:
        """The link has changed, and is not down."""
        before, self.link = self.link, link
        if link.index != before.index or self._source_is_gone() or (self.connection is None and _moved(before, link)):
            self._error = LinkUnavailable(link.name, "its address has changed")
            self._failures = 0
            self._close(goodbye=False)
            self.task.cancel()
            self.task = self._context.reactor.loop.create_task(self._keep())
        elif before.state is not link.state and LinkState.SILENT in (before.state, link.state):
            # Silent: TCP backs off on an old connection, fresh SYNs find a link's return sooner where UDP is blocked.
            # Back: the old connection may have died meanwhile, or the pause before the next attempt may be long.
            self.verify()

    @property
    def is_open(self) -> bool:
        """Whether the proxy speaks on it."""
        return self.connection is not None and self.connection.is_open

    def status(self) -> ChannelStatus:
        """For the eyes of a user."""
        connection = self.connection
        if connection is not None and connection.is_open:
            return ChannelStatus(ChannelState.OPEN, None, connection.peer, self._observed, None)
        if self._retry_at is not None:
            wait_s = max(0.0, self._retry_at - time.monotonic())
            return ChannelStatus(ChannelState.WAITING, self._error, None, self._observed, wait_s)
        peer = None if connection is None else connection.peer
        return ChannelStatus(ChannelState.CONNECTING, self._error, peer, self._observed, None)

    # -- ControlListener --------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        self._hello_number = self._context.association.hello_number()
        return self._context.hello(self.link.name)

    def on_bytes(self) -> None:
        self._context.watch.control_heard(self.link.name)

    def on_welcome(self, welcome: Welcome) -> None:
        context, name = self._context, self.link.name
        self._opened_at = time.monotonic()
        self._strange_since = None
        self._error = None
        self.is_away = False
        self._observed = welcome.observed
        self._set_timer(KEEP_ALIVE_S * random.uniform(0.9, 1.0), self._keep_alive)
        context.association.welcomed(welcome, self._hello_number)
        context.watch.set_captive(name, None)
        context.watch.on_keys()
        context.owner.on_control_open(name, welcome)

    def on_refused(self, refused: Refused) -> None:
        association = self._context.association
        error = _refusal(refused)
        if isinstance(error, AuthenticationError):
            association.refused(error)
        elif refused.code is RefusalCode.ASSOCIATION_TAKEN:
            association.taken()
        self.on_lost(error)

    def on_pong(self, pong: Pong) -> None:
        self._context.watch.answered(self.link.name, pong.nonce, time.monotonic() - pong.time / 1e6)
        self._context.association.confirmed()

    def on_word(self, message: ProxyWord) -> None:
        self._context.owner.on_control_message(self.link.name, message)

    def on_lost(self, error: MsocksError | OSError) -> None:
        if not self._ended.done():
            self._ended.set_result(error)

    # -- inside -----------------------------------------------------------------------------------------------------

    def retry(self) -> None:
        """Something has changed on the link: try now instead of later, where nothing is under way."""
        if self._retry_at is not None:
            self._wake.set()

    async def _keep(self) -> None:
        while True:
            try:
                await self._open()
                error = await self._ended
            except (MsocksError, OSError) as failure:
                error = failure
                self._context.dialer.resolve_soon()
            self.is_away = isinstance(error, ControlClosed | ConnectionRefusedError | ConnectionResetError)
            pause_s = self._pause_after(error)
            self._close(goodbye=False)
            self._tell_away()
            self._error = error
            self._retry_at = time.monotonic() + pause_s
            self._context.owner.on_control_lost(self.link.name, error)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _open(self) -> None:
        context, name = self._context, self.link.name
        self._retry_at = None
        self._ended = context.reactor.loop.create_future()
        tls = TlsMachine(context.tls, pin=context.access.pin)
        tls.start()
        sock = await context.dialer.dial(
            self.link, timeout_s=_DIAL_S, first=tls.outgoing(), rtt_ms=context.watch.rtt_ms(name)
        )
        try:
            self.connection = ControlConnection(context.reactor, sock, tls, self)
        except OSError:
            sock.close()  # reset already: it has no peer any more
            raise
        self._set_timer(_HANDSHAKE_S, self._on_handshake_time_out)
        self.connection.start()
        self._tell_away()

    def _tell_away(self) -> None:
        if self.is_away:
            self._context.on_away()

    def _pause_after(self, error: MsocksError | OSError) -> float:
        """How long to wait, and what the failure says about the link."""
        if self._opened_at is not None and time.monotonic() - self._opened_at > _STABLE_S:
            self._failures = 0
        self._opened_at = None
        doubling = 2.0 ** min(self._failures, 10)
        self._failures += 1
        captive_s = self._captive_for(error)
        if captive_s is not None:
            pause_s = min(max(captive_s / _CAPTIVE_SHARE, _CAPTIVE_LEAST_S), _CAPTIVE_MOST_S)
            return pause_s * random.uniform(0.5, 1.0)
        if isinstance(error, AuthenticationError):
            first_s, most_s = _REFUSED_FIRST_S, _REFUSED_MOST_S
        else:
            is_awaited = self.is_away and self._context.watch.wanted()
            first_s, most_s = _FIRST_PAUSE_S, _AWAY_PAUSE_S if is_awaited else _MOST_PAUSE_S
        return min(first_s * doubling, most_s) * random.uniform(0.5, 1.0)

    def _captive_for(self, error: MsocksError | OSError) -> float | None:
        """For how many seconds somebody else has answered in the proxy's place; None where nobody seems to.

        An impostor is one at once. Who only refuses, closes or says nothing may be the proxy in trouble: unless it has
        been heard over another link meanwhile.
        """
        connection, watch, name = self.connection, self._context.watch, self.link.name
        impostor = isinstance(error, PinMismatch | ProtocolError)
        refused = isinstance(error, AuthenticationError) and not impostor
        if refused or (connection is not None and connection.is_pinned):
            self._strange_since = None
            return None
        if not impostor and connection is None and not isinstance(error, ConnectionRefusedError):
            return None  # nobody answers
        now = time.monotonic()
        if self._strange_since is None:
            self._strange_since = now
        if not impostor and not watch.heard_elsewhere(name, self._strange_since):
            return None
        watch.set_captive(name, LinkCaptive(name, error.what if isinstance(error, MsocksError) else str(error)))
        return now - self._strange_since

    def _on_handshake_time_out(self) -> None:
        connection = self.connection
        if connection is not None and not connection.is_open:
            self.on_lost(TimeoutError(errno.ETIMEDOUT, f"the proxy did not finish the handshake in {_HANDSHAKE_S:g} s"))

    def _keep_alive(self) -> None:
        connection = self.connection
        if connection is None:
            return
        idle_s = time.monotonic() - connection.heard_at
        if idle_s >= KEEP_ALIVE_S / 2:
            connection.verify(self._context.association.next_probe_number())
            idle_s = 0.0
        self._set_timer(KEEP_ALIVE_S * random.uniform(0.9, 1.0) - idle_s, self._keep_alive)

    def _set_timer(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._context.reactor.loop.call_later(delay_s, callback)

    def _source_is_gone(self) -> bool:
        return self.connection is not None and self.connection.source not in self.link.addresses

    def _close(self, *, goodbye: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close(goodbye=goodbye)


def _moved(before: Link, after: Link) -> bool:
    """Whether an attempt that began before may still be under way from an address, or to one, that is no good now."""
    return (before.addresses, before.routes) != (after.addresses, after.routes)


def _refusal(refused: Refused) -> MsocksError:
    said = f": {refused.text}" if refused.text else ""
    match refused.code:
        case RefusalCode.AUTHENTICATION:
            return AuthenticationError(f"the proxy does not accept this access link{said}", remedy=_ASK)
        case RefusalCode.USER_REMOVED:
            return AuthenticationError(f"the proxy's operator has removed this user{said}", remedy=_ASK)
        case RefusalCode.VERSION:
            return ControlUnavailable(f"the proxy speaks another version{said}", remedy="update msocks")
        case RefusalCode.LIMIT:
            return ControlUnavailable(
                f"the user has too many channels{said}", remedy="close agents that are not needed, or ask the operator"
            )
        case _:
            return ControlUnavailable(f"the proxy refused the control channel{said}")
