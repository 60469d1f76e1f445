"""One control channel to the proxy, from the TLS handshake to its end, on a socket of the reactor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from typing import Protocol, TypeAlias

from msocks.errors import ControlClosed, ControlUnavailable, InvalidState, MsocksError, ProtocolError
from msocks.protocol.control import (
    ControlMessage,
    Drain,
    Goodbye,
    Hello,
    LegAccepted,
    Parked,
    Ping,
    Pong,
    Received,
    Refused,
    SessionEnded,
    Welcome,
)
from msocks.protocol.control_channel import ControlChannel, Side
from msocks.protocol.inbound import Incoming, Listening
from msocks.transport.kernel import reset_on_close
from msocks.transport.reactor import FAILED, READABLE, WRITABLE, Reactor
from msocks.transport.tls import TlsMachine
from msocks.values.endpoint import Address, Endpoint

_READ_BYTES = 64 * 1024
_UNSENT_LIMIT_BYTES = 1024 * 1024
_VERIFY_S = 15.0

ProxyWord: TypeAlias = LegAccepted | SessionEnded | Parked | Received | Drain | Listening | Incoming
"""What the proxy says on an open channel about sessions and listeners."""


class ControlListener(Protocol):
    """Who is told what comes over one channel. The calls come from the reactor; none may block."""

    def on_bytes(self) -> None:
        """Something of the proxy has arrived; what somebody says who has not proved to be it does not count."""

    def on_welcome(self, welcome: Welcome) -> None:
        """The proxy has answered the HELLO: the channel stands."""

    def on_refused(self, refused: Refused) -> None:
        """The proxy gives no (more) service on this channel, which is closed after this."""

    def on_pong(self, pong: Pong) -> None:
        """The answer to a PING."""

    def on_word(self, message: ProxyWord) -> None:
        """The proxy's word on a session, or on a listener."""

    def on_lost(self, error: MsocksError | OSError) -> None:
        """The channel is gone. Nothing more is called."""

    def hello(self) -> Hello:
        """What to say first, now that the proxy has proved who it is."""


class ControlConnection:
    """See the module. `sock` is connected and belongs to this object.

    Attributes:
        is_open: Whether WELCOME has come and the channel is not over.
        is_pinned: Whether the other end has proved to be the proxy.
        sock: The socket.
        source: Its local address.
        peer: The proxy's address.
        heard_at: time.monotonic() when something arrived last.
    """

    def __init__(self, reactor: Reactor, sock: socket.socket, tls: TlsMachine, listener: ControlListener) -> None:
        """
        Args:
            reactor: Watches the socket.
            sock: What the machine's first bytes were already sent on.
            tls: The machine, started.
            listener: Is told what comes; not before `start`.
        """
        self.is_open = False
        self.is_pinned = False
        self.sock = sock
        self.source: Address | None = Endpoint.from_sockaddr(sock.getsockname()).address
        self.peer = Endpoint.from_sockaddr(sock.getpeername())
        self.heard_at = time.monotonic()
        self._reactor = reactor
        self._tls = tls
        self._control = ControlChannel(Side.CLIENT)
        self._listener = listener
        self._unsent = bytearray()
        self._over = False
        self._verifying: asyncio.TimerHandle | None = None
        reset_on_close(sock, False)  # what is said last shall arrive

    def start(self) -> None:
        """Begin to read."""
        self._reactor.watch(self.sock.fileno(), self._on_events)

    def send(self, message: ControlMessage) -> bool:
        """Say something; False where the channel is not open (any more)."""
        if not self.is_open:
            return False
        self._say(message)
        return not self._over

    def verify(self, number: int, patience_s: float = _VERIFY_S) -> None:
        """Make sure that the channel lives: it is lost unless something arrives within `patience_s`.

        Args:
            number: The ping's; never used before.
            patience_s: How long to wait.
        """
        if self._verifying is None and self.send(ping(number)):
            asked_at = time.monotonic()
            self._verifying = self._reactor.loop.call_later(patience_s, self._verified, asked_at)

    def close(self, *, goodbye: bool = False) -> None:
        """End the channel, in good order where `goodbye` is said. The listener is not told."""
        if self._over:
            return
        if goodbye and self.is_open:
            with contextlib.suppress(InvalidState):
                self._say(Goodbye())
                self._tls.close()
                self._flush()
        self._stop()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _verified(self, asked_at: float) -> None:
        self._verifying = None
        if self.heard_at < asked_at:
            self._lose(ControlUnavailable("the proxy has stopped answering on the control channel"))

    def _stop(self) -> None:
        self._over = True
        self.is_open = False
        if self._verifying is not None:
            self._verifying.cancel()
        self._reactor.unwatch(self.sock.fileno())
        self.sock.close()

    def _lose(self, error: MsocksError | OSError) -> None:
        if not self._over:
            self._stop()
            self._listener.on_lost(error)

    def _on_events(self, events: int) -> None:
        if events & FAILED:
            number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                self._lose(OSError(number, os.strerror(number)))
                return
        if events & WRITABLE and self._unsent:
            self._flush()
        if events & READABLE:
            self._read()

    def _read(self) -> None:
        while not self._over:
            try:
                data = self.sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(error)
                return
            if not data:
                self._lose(_closed() if self.is_pinned else _closed_at_once())
                return
            self.heard_at = time.monotonic()
            try:
                self._take(data)
            except (ProtocolError, MsocksError) as error:
                self._flush()  # an alert may be there to be sent
                self._lose(error)

    def _take(self, data: bytes) -> None:
        plaintext = self._tls.receive(data)
        if self._tls.established and not self.is_pinned:
            self.is_pinned = True
            self._say(self._listener.hello())
        if self.is_pinned:
            self._listener.on_bytes()
        self._flush()
        for message in self._control.receive(plaintext):
            self._on_message(message)
            if self._over:
                return
        if self._tls.closed:
            self._lose(_closed())

    def _on_message(self, message: ControlMessage) -> None:
        match message:
            case Welcome():
                self.is_open = True
                self._listener.on_welcome(message)
            case Refused():
                self._stop()
                self._listener.on_refused(message)
            case Ping(nonce, sent_at):
                self._say(Pong(nonce, sent_at))
            case Pong():
                self._listener.on_pong(message)
            case Goodbye():
                self._lose(ControlClosed("the proxy said goodbye"))
            case LegAccepted() | SessionEnded() | Parked() | Received() | Drain() | Listening() | Incoming():
                self._listener.on_word(message)

    def _say(self, message: ControlMessage) -> None:
        self._tls.send(self._control.send(message))
        self._flush()

    def _flush(self) -> None:
        if self._over:
            return
        self._unsent += self._tls.outgoing()
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
        except BlockingIOError:
            if len(self._unsent) > _UNSENT_LIMIT_BYTES:
                self._lose(ControlUnavailable("the proxy takes nothing more on the control channel"))
        except OSError as error:
            if error.errno != errno.EPIPE:  # reading tells why
                self._lose(error)


def _closed() -> ControlClosed:
    return ControlClosed("the proxy closed the control channel")


def _closed_at_once() -> ControlClosed:
    return ControlClosed(
        "whoever answers closed the connection during the handshake",
        remedy="a captive portal may answer in the proxy's place: open a web page over this link",
    )


def ping(number: int) -> Ping:
    """A ping whose time is this host's, in microseconds."""
    return Ping(number, int(time.monotonic() * 1e6))
