"""Where a leg begins upstream, when much was on its way as the leg before was lost.

How much of that has arrived, the ACKs that were lost with the leg would have told. A leg that begins with bytes that
the server has spends its first round trips on them, from a congestion window of ten segments on. So the proxy is asked
by UDP while the new connection's handshake is on the way: both take one round trip. Where a connection stands already,
that round trip is still less than those that it saves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Protocol

from msocks.transport.leg_stream import LegStream
from msocks.values.ids import SessionId

_MUCH_BYTES = 10 * 1400
"""The first flight of a new connection (RFC 6928) brings no more."""


class Way(Protocol):
    """How the proxy is reached."""

    def ask_position(self, link: str, session: SessionId) -> float | None:
        """Ask how far a session's upstream has come; how many seconds the answer may take, None: there will be none."""

    async def dial(self, link: str) -> socket.socket:
        """Connect to the proxy over a link. Raises OSError, MsocksError."""


class UpstreamPosition:
    """That of one session, for one leg after the other."""

    def __init__(self, way: Way, session: SessionId, stream: LegStream) -> None:
        self._way = way
        self._session = session
        self._stream = stream
        self._answer: asyncio.Future[int] | None = None

    async def dial(self, link: str, *, ask: bool) -> socket.socket:
        """Connect to the proxy over a link and, where `ask` says so and it is worth it, ask meanwhile.

        Raises OSError, MsocksError.
        """
        stream, self._answer, loop = self._stream, None, asyncio.get_running_loop()
        asks = ask and stream.sent - stream.acknowledged() > _MUCH_BYTES
        patience_s = self._way.ask_position(link, self._session) if asks else None
        if patience_s is None:
            return await self._way.dial(link)
        self._answer, until = loop.create_future(), loop.time() + patience_s
        sock = await self._way.dial(link)
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
        if self._answer is not None and self._answer.done():
            begins_at = max(begins_at, min(self._answer.result(), self._stream.sent))
        return begins_at
