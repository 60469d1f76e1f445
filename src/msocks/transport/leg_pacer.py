"""Paces a leg that has just replaced another, as `msocks.session.pacing` decides. Needs no privilege."""

from __future__ import annotations

import asyncio
import socket

from msocks.session.pacing import Flight, Pacing
from msocks.transport.kernel import limit_rate, tcp_info


class LegPacer:
    """Looks at a leg while bytes are on the way, and tells the kernel at which rate to send.

    Tell it of everything sent: an idle leg has no timer. It ends by itself, and with the socket.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._pacing = Pacing(loop.time())
        self._armed = False

    def on_sent(self) -> None:
        """Bytes were given to the leg."""
        if not self._armed and not self._pacing.over:
            self._armed = True
            self._loop.call_later(self._pacing.interval_s, self._look)

    def _look(self) -> None:
        self._armed = False
        pacing, before = self._pacing, self._pacing.rate
        try:
            info = tcp_info(self._sock)
            flight = Flight(
                at=self._loop.time(),
                acknowledged=info.acknowledged_bytes,
                waiting=info.unsent_bytes > 0,
                rtt_s=info.rtt_ms / 1000,
                rtt_least_s=info.rtt_least_ms / 1000,
            )
            pacing.advance(flight)
            if pacing.rate != before:
                limit_rate(self._sock, pacing.rate)
        except OSError:  # the leg is closed
            pacing.over = True
            return
        if info.unacked_segments or info.unsent_bytes:
            self.on_sent()
