"""A node's listeners at the proxy: asked for on every control channel that opens, so they outlive the proxy."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from msocks.errors import ListenError, MsocksError
from msocks.protocol.control import ControlMessage
from msocks.protocol.inbound import ANYBODY, Incoming, Listen, Listening, ListenStatus, Unlisten
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId

# A port that a listener has had may be taken for a moment while its proxy is restarted, or by a limit that passes.
_RETRY_S = 2.0
# A connection is announced once on each channel, and again on later ones until a leg carries it.
_REMEMBERED = 4096

_PASSING = frozenset({ListenStatus.IN_USE, ListenStatus.LIMIT, ListenStatus.FAILED})
_NUMBERS = {
    ListenStatus.NOT_ALLOWED: errno.EACCES,
    ListenStatus.IN_USE: errno.EADDRINUSE,
    ListenStatus.TIMED_OUT: errno.ETIMEDOUT,
}


class Channels(Protocol):
    """How the proxy is told."""

    def send(self, message: ControlMessage) -> str | None:
        """Say something over the best link; None where nothing was said."""

    def send_over(self, link: str, message: ControlMessage) -> None:
        """Say something over one link, if its channel is open."""


class Wanted:
    """One listener, from `Inbound.listen` until it is closed or refused.

    Attributes:
        port: Which of the proxy's ports is asked for; 0 until the proxy has chosen one.
        once: Whether it is for one connection.
        peer: The only host that may connect.
        bound: Where peers reach it, as the proxy says; None before it says so.
        error: Why it is over; None while it is not, and after `Inbound.close`.
        opened: Set once the proxy listens, or will not.
    """

    def __init__(
        self,
        number: int,
        port: int,
        on_incoming: Callable[[Incoming], None],
        on_change: Callable[[], None],
        once: bool,
        peer: Endpoint,
    ) -> None:
        self.number = number
        self.port = port
        self.once = once
        self.peer = peer
        self.bound: Endpoint | None = None
        self.error: MsocksError | None = None
        self.opened = asyncio.Event()
        self.on_incoming = on_incoming
        self.on_change = on_change
        self.retry: asyncio.TimerHandle | None = None

    @property
    def message(self) -> Listen:
        """What asks for it."""
        return Listen(self.number, self.port, self.once, self.peer)


class Inbound:
    """See the module. All calls on the event loop's thread; callbacks must not block."""

    def __init__(self, channels: Channels) -> None:
        self.listeners: dict[int, Wanted] = {}
        self._channels = channels
        self._numbers = itertools.count(1)
        self._known: OrderedDict[SessionId, None] = OrderedDict()
        self._refusal: MsocksError | None = None  # of the user, until a channel opens after all

    def listen(
        self,
        port: int,
        on_incoming: Callable[[Incoming], None],
        on_change: Callable[[], None],
        *,
        once: bool = False,
        peer: Endpoint = ANYBODY,
    ) -> Wanted:
        """Ask for a port of the proxy, now and after every change of network or proxy.

        Args:
            port: Which; 0 for any that the user may have, which is kept from then on.
            on_incoming: Called once for each peer that has connected.
            on_change: Called when `bound` or `error` has changed.
            once: It is for one connection, at any port; then it is over without a word.
            peer: The only host that may connect; by default anybody may.
        """
        wanted = Wanted(next(self._numbers), port, on_incoming, on_change, once, peer)
        self.listeners[wanted.number] = wanted
        self._channels.send(wanted.message)
        if (refusal := self._refusal) is not None:
            asyncio.get_running_loop().call_soon(self._refuse, wanted, refusal)
        return wanted

    def close(self, wanted: Wanted) -> None:
        """It is not needed any more. Connections that no leg has taken are reset by the proxy."""
        if self.listeners.pop(wanted.number, None) is not None:
            self._quiet(wanted)
            self._channels.send(Unlisten(wanted.number))

    def close_all(self) -> None:
        """No listener is needed any more."""
        for wanted in list(self.listeners.values()):
            self.close(wanted)

    # -- for the node -----------------------------------------------------------------------------------------------

    def on_channel(self, link: str) -> None:
        """A channel has opened, perhaps to a proxy that knows nothing any more."""
        self._refusal = None
        for wanted in self.listeners.values():
            self._channels.send_over(link, wanted.message)

    def on_refused(self, error: MsocksError) -> None:
        """The proxy does not accept this user: there is no hope for what does not listen yet."""
        self._refusal = error
        for wanted in list(self.listeners.values()):
            self._refuse(wanted, error)

    def on_message(self, message: Listening | Incoming) -> None:
        """The proxy's word on a listener."""
        wanted = self.listeners.get(message.number)
        if isinstance(message, Incoming) and message.session in self._known:
            return  # over another channel
        if wanted is None:
            if isinstance(message, Incoming) or message.status is ListenStatus.OPEN:
                self._channels.send(Unlisten(message.number))  # the first one has not arrived, or was overtaken
        elif isinstance(message, Incoming):
            self._known[message.session] = None
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            if wanted.once:  # no UNLISTEN, which would reset the connection
                self._quiet(wanted)
                del self.listeners[wanted.number]
            wanted.on_incoming(message)
        elif message.bound is not None:
            self._opened(wanted, message.bound)
        elif message.status in _PASSING and wanted.bound is not None and not wanted.once:
            self._quiet(wanted)
            wanted.retry = asyncio.get_running_loop().call_later(_RETRY_S, self._channels.send, wanted.message)
        else:
            self._end(wanted, _error(message))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _opened(self, wanted: Wanted, bound: Endpoint) -> None:
        self._quiet(wanted)
        wanted.port = 0 if wanted.once else bound.port
        changed, wanted.bound = wanted.bound != bound, bound
        wanted.opened.set()
        if changed:
            wanted.on_change()

    def _refuse(self, wanted: Wanted, error: MsocksError) -> None:
        if wanted.bound is None and wanted.number in self.listeners:
            self._end(wanted, error)

    def _end(self, wanted: Wanted, error: MsocksError) -> None:
        self._quiet(wanted)
        del self.listeners[wanted.number]
        wanted.error = error
        wanted.opened.set()
        wanted.on_change()

    def _quiet(self, wanted: Wanted) -> None:
        if wanted.retry is not None:
            wanted.retry.cancel()
            wanted.retry = None


def _error(message: Listening) -> ListenError:
    what, _, remedy = message.text.partition("; ")
    what = f"the proxy does not listen: {what or message.status.name.lower()}"
    return ListenError(what, remedy=remedy, number=_NUMBERS.get(message.status))
