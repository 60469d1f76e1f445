"""Couples an ordinary socket with a leg stream: bytes both ways, back-pressure both ways, half-close both ways.

At the proxy the socket is the server leg (this is the relay); at the agent it is the program's own connection.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Protocol

from msocks.session.byte_budget import ByteBudget
from msocks.session.leg_chain import StreamGapError
from msocks.transport.kernel import reset_on_close
from msocks.transport.leg_stream import LegStream
from msocks.transport.reactor import BEYOND_A_SHORT_READ, FAILED, READABLE, WRITABLE, Reactor
from msocks.transport.sweep import Sweep

_CHUNK_BYTES = 64 * 1024
# Turns in a row for one direction of one connection; then the others get theirs.
_TURNS = 16
# How often to look whether a stream that has ended in good order is delivered.
_DELIVERY_LOOK_S = 0.05


class PumpOwner(Protocol):
    """Who is told how a pump gets on."""

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        """The newest leg is dead; the pump waits for another."""

    def on_socket_failed(self, error: OSError) -> None:
        """The ordinary socket was reset or timed out; nothing more can be pumped."""

    def on_gap(self, error: StreamGapError) -> None:
        """Bytes of the stream are lost for good; nothing more may be pumped."""

    def on_finished(self) -> None:
        """Both directions have ended, and everything has arrived."""


class SocketPump:
    """See the module. `sock` must be connected and non-blocking; it is owned, and closed by :meth:`close`."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        owner: PumpOwner,
        sweep: Sweep,
        budget: ByteBudget | None = None,
    ) -> None:
        self.stream = self._new_stream(reactor, sweep, budget)
        self._reactor = reactor
        self._sock = sock
        self._owner = owner
        self._closed = False
        self._hung_up = False
        self._leftover: bytes | memoryview = b""  # read from the stream, not yet taken by the socket
        self._socket_ending = False  # the reactor has reported what a short read does not show
        self._socket_eof = False
        self._socket_shut = False
        self._finished_acknowledged = False
        self._dead: OSError | None = None
        reset_on_close(sock)

    def _new_stream(self, reactor: Reactor, sweep: Sweep, budget: ByteBudget | None) -> LegStream:
        return LegStream(reactor, self, sweep, budget)

    @property
    def sock(self) -> socket.socket:
        """The ordinary socket."""
        return self._sock

    @property
    def socket_ended(self) -> bool:
        """Whether the socket's peer has ended its direction."""
        return self._socket_eof

    def start(self, early: bytes = b"") -> None:
        """Begin; `early` was already read from the socket."""
        if early:
            self.stream.write(early)
        self._reactor.watch(self._sock.fileno(), self._on_socket_events)

    def hang_up(self, up_end: int) -> None:
        """Give the socket the inbound stream up to `up_end` and a FIN; discard what it still sends.

        on_finished() comes when its peer has ended too.
        """
        self._hung_up = True
        self.stream.stop_sending()
        self.stream.confirm_end(up_end)
        self._reactor.call_soon(self._take_from_socket)
        self._reactor.call_soon(self._tell_dead)

    def when_delivered(self, patience_s: float, done: Callable[[bool], None]) -> None:
        """Call `done(True)` once the socket has all of a stream that has ended in good order: nothing tells of that.

        `done(False)` where the socket takes nothing of it for `patience_s`, or never will; nothing where the pump is
        closed before.
        """
        self._look_for_delivery(patience_s, done, self.stream.position, 0.0)

    def close(self, reset: bool = True) -> None:
        """Close the socket (with RST, or by an orderly end) and all legs (with RST, where anything is outstanding)."""
        if self._closed:
            return
        self._closed = True
        self._reactor.unwatch(self._sock.fileno())
        with contextlib.suppress(OSError):
            reset_on_close(self._sock, reset)
        self._sock.close()
        self.stream.close()

    # -- StreamOwner ------------------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        if self._closed or self._leftover or self._socket_shut or self._dead:
            return
        try:
            for _ in range(_TURNS):
                data = self.stream.read(_CHUNK_BYTES)
                if data is None:
                    return
                if not data:
                    self._shut_socket()
                    return
                if not self._give_to_socket(data):
                    return
        except StreamGapError as gap:
            self._owner.on_gap(gap)
            return
        self._reactor.call_soon(self.on_readable)

    def on_writable(self) -> None:
        self._take_from_socket()

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        if not self._closed:
            self._owner.on_leg_lost(generation, error)

    def on_acknowledged(self) -> None:
        self._finished_acknowledged = True
        if self._dead is not None:
            self._tell_dead()
        else:
            self._check_finished()

    # -- the socket -------------------------------------------------------------------------------------------------

    def _on_socket_events(self, events: int) -> None:
        if events & BEYOND_A_SHORT_READ:
            self._socket_ending = True
        if events & FAILED:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail_socket(OSError(code, errno.errorcode.get(code, "error")))
                return
        if events & WRITABLE and self._leftover:
            leftover, self._leftover = self._leftover, b""
            if self._give_to_socket(leftover):
                self.on_readable()
        if events & READABLE:
            self._take_from_socket()

    def _take_from_socket(self) -> None:
        if self._socket_eof:
            return
        stream = self.stream
        for _ in range(_TURNS):
            if self._closed:
                return
            room = _CHUNK_BYTES if self._hung_up else stream.ask_for_room(_CHUNK_BYTES)
            if not room:
                return
            try:
                count = self._receive_from_socket(room)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail_socket(error)
                return
            if not count:
                self._socket_eof = True
                stream.finish()
                self._check_finished()
                return
            if count < room and not self._socket_ending:
                return  # read empty
        self._reactor.call_soon(self._take_from_socket)

    def _receive_from_socket(self, room: int) -> int:
        """Bring what the socket has to the stream; how many bytes, 0 at its end. Raises as recv() does."""
        data = self._sock.recv(room)
        if data and not self._hung_up:
            self.stream.write(data)
        return len(data)

    def _give_to_socket(self, data: bytes | memoryview) -> bool:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail_socket(error)
            return False
        if sent < len(data):
            self._leftover = memoryview(data)[sent:]
            return False
        return True

    def _look_for_delivery(self, patience_s: float, done: Callable[[bool], None], position: int, idle_s: float) -> None:
        stream = self.stream
        if self._closed:
            return
        if stream.at_eof:  # the stream says so only after all of it was given to the socket
            done(True)
            return
        idle_s = idle_s + _DELIVERY_LOOK_S if stream.position == position else 0.0
        if idle_s > patience_s or self._dead is not None:
            done(False)
            return
        position = stream.position
        self.on_readable()
        self._reactor.loop.call_later(_DELIVERY_LOOK_S, self._look_for_delivery, patience_s, done, position, idle_s)

    def _shut_socket(self) -> None:
        self._socket_shut = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail_socket(error)
            return
        self._check_finished()

    def _check_finished(self) -> None:
        heard = self._socket_eof if self._hung_up else self._finished_acknowledged
        if self._socket_shut and heard and not self._closed:
            self._owner.on_finished()

    def _fail_socket(self, error: OSError) -> None:
        """A reset of a socket that had ended its own direction before takes back nothing of what it sent."""
        if self._closed or self._dead:
            return
        if self._socket_eof and not self._finished_acknowledged and not self._hung_up:
            self._dead = error
        else:
            self._owner.on_socket_failed(error)

    def _tell_dead(self) -> None:
        if self._dead is not None and not self._closed:
            self._owner.on_socket_failed(self._dead)
