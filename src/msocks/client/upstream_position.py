"""Where a leg begins upstream, when much was on its way as the leg before was lost.

How much of that has arrived, the ACKs that were lost with the leg would have told. A leg that begins with bytes that
the server has spends its first round trips on them, from a congestion window of ten segments on. So the proxy is asked
by UDP while the new connection's handshake is on the way: both take one round trip. Where a connection stands already
it is asked too, unless the leg begins with a guess, which the proxy's reply mends (`session.first_flight`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Protocol

from msocks.protocol.leg import LegCommand
from msocks.protocol.leg_request_codec import REQUEST_BYTES
from msocks.session.first_flight import FirstFlight, guess
from msocks.transport.kernel import TcpInfo, tcp_info
from msocks.transport.leg_stream import LegStream
from msocks.values.ids import SessionId

_MUCH_BYTES = 10 * 1400
"""The first flight of a new connection (RFC 6928) brings no more."""
_UNHEARD = 0.5
"""Round trips whose ACKs are lost with a leg: one, where its near end broke and what was sent went on its way; none,
where its far end did. The first flight covers what half of one leaves open on most paths."""


class Way(Protocol):
    """How the proxy is reached."""

    def ask_position(self, link: str, session: SessionId) -> float | None:
        """Ask how far a session's upstream has come; how many seconds the answer may take, None: there will be none."""

    async def dial(self, link: str) -> socket.socket:
        """Connect to the proxy over a link. Raises OSError, MsocksError."""


class UpstreamPosition:
    """That of one session, for one leg after the other.

    Attributes:
        flight: What the leg begins with that was dialled last; None where that is no guess.
    """

    def __init__(self, way: Way, session: SessionId, stream: LegStream) -> None:
        self.flight: FirstFlight | None = None
        self._way = way
        self._session = session
        self._stream = stream
        self._answer: asyncio.Future[int] | None = None
        self._lost: TcpInfo | None = None
        self._asks = False

    def leg_lost(self, leg: socket.socket) -> None:
        """It carries no more; what its ACKs have told is remembered for the next."""
        if self._stream.acks_tell:
            with contextlib.suppress(OSError):
                self._lost = tcp_info(leg)

    def begins_on(self, spare: socket.socket | None, *, ask: bool) -> bool:
        """Whether a leg can begin at once, on a connection that stands already; where not, `dial`.

        Where `ask` says so and it is worth it, it begins with a guess; if there is none, the proxy has to be asked.
        """
        stream = self._stream
        self.flight = self._answer = None
        lost, self._lost = self._lost, None
        is_worth_it = ask and stream.sent - stream.acknowledged() > _MUCH_BYTES
        if spare is not None and lost is not None and is_worth_it:
            self.flight = self._guess(spare, lost)
        self._asks = is_worth_it and self.flight is None
        return spare is not None and not self._asks

    async def dial(self, link: str, spare: socket.socket | None) -> socket.socket:
        """A connection to the proxy over a link, `spare` or a new one, and meanwhile the question where it is asked.

        To be called after `begins_on`; `spare` stays the caller's. Raises OSError, MsocksError.
        """
        loop = asyncio.get_running_loop()
        patience_s = self._way.ask_position(link, self._session) if self._asks else None
        if patience_s is None:
            return spare or await self._way.dial(link)
        self._answer, until = loop.create_future(), loop.time() + patience_s
        sock = spare or await self._way.dial(link)
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)  # if this is cancelled
            await asyncio.wait((self._answer,), timeout=max(0.0, until - loop.time()))
            stack.pop_all()
        return sock

    def told(self, received: int) -> None:
        """The proxy says that so much has arrived."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(received)

    def beginning(self) -> int:
        """Where the leg begins that was dialled last; nothing is forgotten from now on (see `LegStream.freeze`)."""
        begins_at = self._stream.freeze()
        if self.flight is not None:
            return self.flight.begins_at
        if self._answer is not None and self._answer.done():
            begins_at = max(begins_at, min(self._answer.result(), self._stream.sent))
        return begins_at

    def _guess(self, spare: socket.socket, lost: TcpInfo) -> FirstFlight | None:
        with contextlib.suppress(OSError):
            fresh = tcp_info(spare)
            return guess(
                self._stream.acknowledged(),
                self._stream.sent,
                lost.delivered_per_s,
                _UNHEARD * lost.rtt_least_ms / 1000,
                fresh.segment_bytes * fresh.window_segments - REQUEST_BYTES[LegCommand.RECONNECT],
            )
        return None
