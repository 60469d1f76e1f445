"""The last word to a server whose mobile node has hung up: a FIN, and then patience until it has said all it wants.

A FIN is retransmitted, and what the server still sends has to be acknowledged: work for a kernel socket. It is rebuilt
from the numbers of the splice, and closed in the ordinary way.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable

from msocks.datapath.splice import flows
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import NO_FIN, SERVER, LegState, Session, SessionState
from msocks.datapath.splice.leg_socket import server_socket
from msocks.datapath.splice.owed import OwedBytes
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.segments import RST
from msocks.datapath.splice.speech import say
from msocks.transport.kernel import bytes_unacknowledged, reset_on_close
from msocks.transport.reactor import FAILED, Reactor

_DISCARD_BYTES = 1 << 16
_LOOK_S = 0.05


def reset_both(session: Session, mobile: int, output: RawOutput) -> None:
    """RST to the server and to the mobile leg of that number, where it is live.

    An end for which it is not exact says where it stands (RFC 5961), and is told again: EVENT_SPOKE.
    """
    session.state = SessionState.RESETTING
    session.last_ns = time.monotonic_ns()
    output.send(say(session, SERVER, max(session.up.acked, session.up.sent), b"", RST))
    if mobile != SERVER and session.legs[mobile].state == LegState.LIVE:
        output.send(say(session, mobile, max(session.down.acked, session.down.sent), b"", RST))


def say_farewell(
    host: SpliceHost,
    session: Session,
    up_end: int,
    owed: OwedBytes | None,
    *,
    on_finished: Callable[[], None],
    on_lost: Callable[[], None],
) -> Farewell:
    """Begin one for a session whose mobile leg is stopped, and settled; see the class."""
    rest = owed.rest() if owed is not None else b""
    farewell = Farewell(host.reactor, session, up_end, owed=rest, on_finished=on_finished, on_lost=on_lost)
    if owed is not None:
        owed.cancel()
    flows.leave(host.tables, session)
    session.state = SessionState.RESET
    farewell.begin()
    return farewell


class Farewell:
    """See the module. `owed` are the last bytes before `up_end` that the server has not got.

    `on_finished` or `on_lost` is called once, not within `begin`.
    """

    def __init__(
        self,
        reactor: Reactor,
        session: Session,
        up_end: int,
        *,
        owed: bytes,
        on_finished: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._on_finished = on_finished
        self._on_lost = on_lost
        self._heard_all = session.down.fin != NO_FIN and session.down.acked > session.down.fin
        self._said_all = session.up.fin != NO_FIN and session.up.acked > session.up.fin
        self._session = session
        self._said = up_end - len(owed) + (1 if self._said_all else 0)
        self._owed = memoryview(owed)
        self._sock: socket.socket | None = None

    def begin(self) -> None:
        """Say it. The splice's flow is gone: what comes now reaches the kernel."""
        if self._said_all and self._heard_all:
            self._reactor.call_soon(self._on_finished)
            return
        try:
            sock = server_socket(self._session, self._said, self._session.down.acked)
            self._sock = sock
            self._say_rest(sock)
        except OSError:
            self._reactor.call_soon(self._on_lost)
            return
        self._reactor.watch(sock.fileno(), self._on_events)
        if self._heard_all:
            self._look()

    def close(self, *, reset: bool) -> None:
        """Enough."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._reactor.unwatch(sock.fileno())
            with contextlib.suppress(OSError):
                reset_on_close(sock, reset)
            sock.close()

    def _say_rest(self, sock: socket.socket) -> None:
        """What is owed, then the FIN. Raises OSError where the connection is lost."""
        if self._said_all:
            return
        try:
            while self._owed:
                self._owed = self._owed[sock.send(self._owed) :]
        except BlockingIOError:
            return  # an event tells that there is room again
        sock.shutdown(socket.SHUT_WR)

    def _on_events(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        if events & FAILED and (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            del code
            self._lost()
            return
        if self._owed:
            try:
                self._say_rest(sock)
            except OSError:
                self._lost()
                return
        while True:
            try:
                data = sock.recv(_DISCARD_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    self._lost()
                return
            if not data:
                self._heard_all = True
                self._look()
                return

    def _look(self) -> None:
        """No event tells that a FIN was acknowledged."""
        sock = self._sock
        if sock is None:
            return
        if self._said_all or not (self._owed or bytes_unacknowledged(sock)):
            self._reactor.call_soon(self._on_finished)
        else:
            self._reactor.loop.call_later(_LOOK_S, self._look)

    def _lost(self) -> None:
        self.close(reset=True)
        self._on_lost()
