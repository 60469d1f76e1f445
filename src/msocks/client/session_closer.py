"""Tells the proxy, by an authenticated CLOSE, that sessions are over: in the background, until it has heard."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from msocks.client.network import Authority
from msocks.errors import MsocksError
from msocks.protocol.leg import Close, CloseMode, LegReply, LegStatus
from msocks.protocol.leg_reply_codec import LegReplyDecoder
from msocks.protocol.leg_request_codec import encode_request
from msocks.values.ids import MAX_GENERATION, SessionId

# After this the proxy's own detach grace has to end the session.
_GIVE_UP_S = 120.0
_RETRY_FIRST_S = 0.2
_RETRY_MOST_S = 10.0
_REPLY_S = 5.0
_AGAIN = frozenset({LegStatus.REPLAYED, LegStatus.EXPIRED, LegStatus.STALE_GENERATION, LegStatus.BUSY, LegStatus.LIMIT})
"""The session is what it was: with a new number, the clock and the generation of the reply it can be closed."""


class Way(Protocol):
    """How the proxy can be reached."""

    @property
    def authority(self) -> Authority | None:
        """The keys; None while there are none."""

    @property
    def usable_links(self) -> tuple[str, ...]:
        """The links that can be tried, the preferred one first."""

    async def dial(self, link: str) -> socket.socket:
        """Connect to the proxy. Raises OSError, MsocksError."""


class SessionCloser:
    """See the module."""

    def __init__(self, way: Way, loop: asyncio.AbstractEventLoop) -> None:
        self._way = way
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self, session: SessionId, generation: int, up_end: int | None = None) -> None:
        """Have `session` reset, or ended in good order where its upstream ends with the byte before `up_end`.

        `generation` is the highest one that this side used, whether a reply came or not.
        """
        task = self._loop.create_task(self._until_told(session, generation, up_end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, seconds: float) -> None:
        """Wait so long at most for what is under way, then give it up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()

    async def _until_told(self, session: SessionId, generation: int, up_end: int | None) -> None:
        pause, tries = _RETRY_FIRST_S, 0
        end = self._loop.time() + _GIVE_UP_S
        while self._loop.time() < end:
            authority, links = self._way.authority, self._way.usable_links
            if authority is not None and links:
                try:
                    sock = await self._way.dial(links[tries % len(links)])
                    with sock:
                        telling = self._tell(sock, authority, session, generation, up_end)
                        reply = await asyncio.wait_for(telling, _REPLY_S)
                    if reply is not None:
                        authority.proxy_time_is(reply.proxy_ms)
                        if reply.status not in _AGAIN:
                            return
                        generation = max(generation, reply.generation)
                except (OSError, MsocksError):
                    pass  # the next link, the next time
                tries += 1
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_MOST_S)

    async def _tell(
        self, sock: socket.socket, authority: Authority, session: SessionId, generation: int, up_end: int | None
    ) -> LegReply | None:
        """Say CLOSE; the answer, if it can be believed."""
        request = encode_request(
            Close(
                association=authority.id,
                leg_number=authority.next_leg_number(),
                expires_ms=authority.expiry_ms(),
                session=session,
                generation=min(max(generation, 1), MAX_GENERATION),
                mode=CloseMode.RESET if up_end is None else CloseMode.GRACEFUL,
                up_fin_at=up_end,
            ),
            authority.key_up,
        )
        decoder = LegReplyDecoder(request, authority.key_down)
        await self._loop.sock_sendall(sock, request)
        while data := await self._loop.sock_recv(sock, decoder.bytes_needed):
            received = decoder.receive(data)
            if received is not None:
                return received.reply if received.verified else None
        return None
