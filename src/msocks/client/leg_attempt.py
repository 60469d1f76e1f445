"""One attempt to open a mobile leg: dial through the link, say the request, read the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Coroutine

from msocks.errors import MsocksError, ProtocolError
from msocks.protocol.leg import ReceivedReply
from msocks.protocol.leg_reply_codec import LegReplyDecoder
from msocks.session.first_flight import FirstFlight
from msocks.session.leg_chain import StreamGapError
from msocks.transport.kernel import deafen
from msocks.transport.leg_stream import LegStream
from msocks.transport.reactor import FAILED, READABLE, WRITABLE, Reactor


class LegAttempt:
    """A leg whose reply has not come yet.

    Life: :meth:`say` once the connection stands, then `on_reply` or `on_failure`, at most one of them, once. After an
    `on_reply` the socket belongs to the caller. :meth:`cease` takes the events away and keeps the socket, because the
    proxy may have accepted the leg: after :meth:`deafen`, :meth:`late_reply` tells for good whether anything of the
    stream has come on it.
    """

    def __init__(
        self,
        reactor: Reactor,
        generation: int,
        link: str,
        on_reply: Callable[[LegAttempt, ReceivedReply], None],
        on_failure: Callable[[LegAttempt, Exception], None],
        on_writable: Callable[[], None],
    ) -> None:
        self.generation = generation
        self.link = link
        self.request_bytes = 0
        self.key_up = b""
        self.sends_from: int | None = None  # A, once the stream's bytes follow the request
        self.flight: FirstFlight | None = None  # where that is a guess
        self.handover = False
        self.split = False  # a middlebox ACKs on it in the proxy's place
        self.disowned = False  # somebody answered, unverifiably, that the association is unknown
        self.dialing: asyncio.Task[None] | None = None
        self._reactor = reactor
        self._sock: socket.socket | None = None
        self._decoder: LegReplyDecoder | None = None
        self._on_reply = on_reply
        self._on_failure = on_failure
        self._on_writable = on_writable
        self._over = asyncio.Event()

    @property
    def sock(self) -> socket.socket:
        """The connection; only after :meth:`say`."""
        assert self._sock is not None
        return self._sock

    @property
    def said(self) -> bool:
        """Whether the request has left: the proxy may have acted on it."""
        return self._sock is not None

    @property
    def first_flight(self) -> int:
        """Length of the flight that it begins with; 0 where that is no guess."""
        return 0 if self.flight is None else self.flight.length

    @property
    def early(self) -> bytes:
        """Stream bytes that came with the reply; empty when asked again."""
        assert self._decoder is not None
        return self._decoder.take_trailing()

    def dial(self, dialing: Coroutine[None, None, None], spare: socket.socket | None) -> None:
        """Let `dialing` get the connection; `spare`, which it may use, is closed if nobody wants it any more."""
        self.dialing = self._reactor.loop.create_task(dialing)
        if spare is not None:
            self.dialing.add_done_callback(lambda task: spare.close() if task.cancelled() else None)

    def say(self, sock: socket.socket, request: bytes, key_up: bytes, key_down: bytes) -> None:
        """Write the request. Raises OSError where the connection does not take it (it is empty, so it is dead)."""
        # The first flight follows at once, and begins in the same segment.
        sent = sock.send(request, 0 if self.flight is None else socket.MSG_MORE)
        if sent != len(request):
            raise OSError(errno.EAGAIN, "the new connection does not take the request whole")
        self.request_bytes = sent
        self.key_up = key_up
        self._sock = sock
        self._decoder = LegReplyDecoder(request, key_down)

    def listen(self) -> None:
        """Begin to wait for the reply."""
        self._reactor.watch(self.sock.fileno(), self._on_events)

    def carry(self, stream: LegStream, begins_at: int, *, doubtful: bool) -> None:
        """Let the stream's upstream from `begins_at` on follow the request; `doubtful`: who ACKs on it is not known."""
        stream.send_on(
            self.sock,
            self.generation,
            begins_at,
            overhead=self.request_bytes,
            handover=self.handover,
            split=self.split or doubtful,
            first_flight=self.first_flight,
        )
        self.sends_from = begins_at

    def go_on(self, stream: LegStream, arrived: int) -> None:
        """Go on with the stream's upstream, of which the proxy has `arrived` bytes. Raises StreamGapError at a gap."""
        if self.flight is not None:
            retained_from = stream.acknowledged()
            if not retained_from <= arrived <= stream.sent:
                raise StreamGapError(arrived, retained_from)
            stream.go_on(self.flight.leg_begins_at(arrived))
        elif self.sends_from is not None and arrived < self.sends_from and not self.handover:
            raise StreamGapError(arrived, self.sends_from)

    async def over(self) -> None:
        """Wait until the reply has come, or nobody waits for it any longer."""
        await self._over.wait()

    def cease(self) -> None:
        """Wait no longer."""
        self._over.set()
        if self.dialing is not None:
            self.dialing.cancel()
        if self._sock is not None:
            self._reactor.unwatch(self._sock.fileno())

    def deafen(self) -> None:
        """Let the connection hear nothing any more, so that nothing more is acknowledged on it."""
        deafen(self.sock)

    def late_reply(self) -> ReceivedReply | None:
        """The verified reply, if it has come after all; the socket stays the attempt's."""
        with contextlib.suppress(OSError, MsocksError):
            return self._read_reply()
        return None

    def close(self) -> None:
        """Give the connection up (with RST, by SO_LINGER 0)."""
        self.cease()
        if self._sock is not None:
            self._sock.close()

    def _on_events(self, events: int) -> None:
        if events & READABLE or events & FAILED:
            try:
                received = self._read_reply()
            except (OSError, ProtocolError) as error:
                self.cease()
                self._on_failure(self, error)
                return
            if received is not None:
                self._over.set()
                self._on_reply(self, received)
                return
        if events & WRITABLE:
            self._on_writable()

    def _read_reply(self) -> ReceivedReply | None:
        decoder = self._decoder
        assert decoder is not None
        while decoder.bytes_needed:
            try:
                data = self.sock.recv(decoder.bytes_needed)
            except BlockingIOError:
                return None
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the proxy closed the leg before it answered")
            received = decoder.receive(data)
            if received is not None:
                return received
        return None
