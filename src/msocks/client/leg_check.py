"""Finds out whether an idle leg still reaches the proxy, where its link does: a NAT may have forgotten the one and not
the other.

No byte of the leg can be spent on the question, so TCP asks: keep-alive segments now instead of in two minutes. A leg
that lives ACKs them; one that the network has forgotten is reset by whoever gets them, or runs into a time-out of three
to four seconds: three of them have to be lost, which on a path that loses a few in a hundred is no chance. Either way
the kernel fails the socket, and the leg is replaced as after any other loss.
"""

from __future__ import annotations

import contextlib
import socket
import weakref
from collections.abc import Iterable

from msocks.transport.dial import keep_alive
from msocks.transport.kernel import tcp_info
from msocks.transport.reactor import Reactor

_INTERVAL_S = 1
_PROBES = 3
# With TCP_USER_TIMEOUT it is the time that counts, and no number of probes (tcp(7)): so long do all of them take.
_GIVE_UP_MS = 1000 * _INTERVAL_S * (1 + _PROBES)
_LASTS_S = 6.0
_PAUSE_MS = 2000
_PAUSE_SEEN_MS = 2000  # looks come at least this often while a pause is young
_TCP_USER_TIMEOUT = socket.TCP_USER_TIMEOUT


class LegChecks:
    """The checks that are under way."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._running: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def check(self, leg: socket.socket) -> None:
        """Let TCP ask on `leg`. A check that is under way goes on; a socket that is closed is left alone."""
        if leg in self._running:
            return
        with contextlib.suppress(OSError):
            # While data waits for its ACK there are no keep-alives: the retransmissions ask. They may wait long.
            if tcp_info(leg).unacked_segments:
                leg.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, _GIVE_UP_MS)
            leg.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            leg.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
            leg.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
            leg.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _INTERVAL_S)
            self._running.add(leg)
            self._reactor.loop.call_later(_LASTS_S, self._finish, weakref.ref(leg))

    def check_paused(self, legs: Iterable[socket.socket]) -> None:
        """Let TCP ask on those legs that bytes have come from until two to four seconds ago.

        Whoever only receives never learns that the other end is gone: a firewall that has restarted answers the sender
        with an RST, and nobody tells the receiver. A pause may be the program's own; then it costs a few small packets.
        """
        for leg in legs:
            with contextlib.suppress(OSError):
                info = tcp_info(leg)
                since_ms = info.last_data_received_ms - _PAUSE_MS
                if 0 <= since_ms < _PAUSE_SEEN_MS and info.last_ack_received_ms >= _PAUSE_MS:
                    self.check(leg)

    def _finish(self, reference: weakref.ref[socket.socket]) -> None:
        leg = reference()
        if leg is None:
            return
        self._running.discard(leg)
        with contextlib.suppress(OSError):
            leg.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, 0)
            keep_alive(leg)
