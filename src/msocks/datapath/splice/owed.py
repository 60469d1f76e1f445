"""Upstream bytes that this host's kernel has acknowledged to the mobile, and that the server has not got yet.

A program may send behind its request before it knows whether it will be spliced. Nobody but this host has these bytes
any more: they are said until the server has acknowledged them, over all legs of the session and as long as it lives.
"""

from __future__ import annotations

import time

from msocks.datapath.splice.layout import SERVER, Session
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.segments import PSH
from msocks.datapath.splice.speech import largest_payload, say
from msocks.transport.reactor import Reactor

_LEAST_S = 0.2  # RTO_MIN of Linux
_MOST_S = 8.0
_LOOK_S = (0.01, 1.0)  # no event tells of an ACK
_BURST_SEGMENTS = 16
_SAFE_SEGMENT = 1220  # fits every IPv6 path (RFC 8200 section 5)


class OwedBytes:
    """See the module; a small sender of TCP, which the server's window alone paces.

    Attributes:
        end: The offset behind the last of them.
    """

    __slots__ = (
        "_acked",
        "_begin",
        "_data",
        "_output",
        "_reactor",
        "_said",
        "_said_at",
        "_session",
        "_timeout_s",
        "end",
    )

    def __init__(self, reactor: Reactor, session: Session, output: RawOutput, begin: int, data: bytes) -> None:
        """Say them: `data` from the offset `begin` on. The server hears of the mobile's window with the first word."""
        self.end = begin + len(data)
        self._reactor = reactor
        self._session = session
        self._output = output
        self._begin = begin
        self._data = data
        self._acked = self._said = max(begin, session.up.acked)
        self._timeout_s = min(_MOST_S, max(_LEAST_S, 3 * session.legs[SERVER].round_trip_ms / 1000))
        self._said_at = time.monotonic()
        if not self._say(session.up.edge):
            output.send(say(session, SERVER, self._acked))
        self._wait(0.0)

    def rest(self) -> bytes:
        """What the server has not acknowledged."""
        return self._data[max(0, self._session.up.acked - self._begin) :] if self._data else b""

    def cancel(self) -> None:
        """Somebody else sees to them, or nobody wants them any more."""
        self._data = b""

    def _say(self, limit: int) -> bool:
        """On from where the last word ended, at most up to `limit`."""
        limit = min(limit, self.end)
        size = largest_payload(self._session.legs[SERVER], _SAFE_SEGMENT)
        began = self._said
        for _ in range(_BURST_SEGMENTS):
            if self._said >= limit:
                break
            end = min(limit, self._said + size)
            piece = self._data[self._said - self._begin : end - self._begin]
            self._output.send(say(self._session, SERVER, self._said, piece, PSH))
            self._said = end
        return self._said > began

    def _wait(self, elapsed_s: float) -> None:
        least, most = _LOOK_S
        soon = max(least, self._session.legs[SERVER].round_trip_ms / 1000)
        self._reactor.loop.call_later(min(most, max(soon, elapsed_s)), self._look)

    def _look(self) -> None:
        if not self._data:
            return
        up, now = self._session.up, time.monotonic()
        if up.acked >= self.end:
            self._data = b""
            return
        if up.acked > self._acked:
            self._acked = up.acked
            self._said = max(self._said, self._acked)
            self._timeout_s = max(_LEAST_S, min(self._timeout_s, 3 * self._session.legs[SERVER].round_trip_ms / 1000))
            self._said_at = now
        if self._say(up.edge):
            self._said_at = now
        elif now - self._said_at >= self._timeout_s:
            # Lost; or the window is shut, and its opening was: one byte probes it (RFC 9293 section 3.8.6.1).
            self._said = self._acked
            self._say(max(up.edge, self._acked + 1))
            self._said_at = now
            self._timeout_s = min(_MOST_S, 2 * self._timeout_s)
        self._wait((now - self._said_at) / 4 if self._timeout_s > _LEAST_S else 0.0)
