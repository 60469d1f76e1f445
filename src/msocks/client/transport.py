"""An asyncio transport whose connection moves: the library's stream is the mobile leg itself, without another hop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from msocks.client.connection import Connection
from msocks.client.events import EventLog
from msocks.client.network import Network
from msocks.errors import EndReason, MsocksError, SessionEnded
from msocks.protocol.inbound import Incoming
from msocks.session.leg_chain import StreamGapError
from msocks.session.mobile_effects import Carried, SessionState
from msocks.transport.leg_stream import LegStream
from msocks.transport.outbound import UNSENT_LIMIT_BYTES
from msocks.transport.sweep import Sweep
from msocks.values.endpoint import Endpoint

_CHUNK_BYTES = 64 * 1024
_TURNS = 16
# After the session's end in good order nothing more is on the way: what then does not come is not here.
_REST_PATIENCE_S = 60.0


class MobileTransport(asyncio.Transport):
    """Implements `asyncio.Transport` over a `LegStream`.

    close() ends the outbound direction; the connection and what is unsent live on, without the program, until the peer
    has acknowledged all of it. abort() resets the connection at the server.
    """

    # asyncio wraps TLS around any transport that says so (loop.start_tls).
    _start_tls_compatible = True

    def __init__(
        self,
        network: Network,
        sweep: Sweep,
        destination: Endpoint,
        protocol: asyncio.Protocol,
        incoming: Incoming | None = None,
    ) -> None:
        super().__init__()
        self._reactor = network.reactor
        self._loop = network.reactor.loop
        self._protocol = protocol
        self._stream = LegStream(network.reactor, self, sweep)
        self.events = EventLog()
        self._paused = True
        self._told_eof = False
        self._closing = False
        self._over = False
        self._draining = False  # the session has ended in good order, and the program has yet to read the rest
        self._acknowledged = False
        self._protocol_paused = False
        self._high = UNSENT_LIMIT_BYTES
        self.connection = Connection(network, destination, self._stream, self, incoming)

    # -- asyncio.Transport ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The connection stands: tell the protocol, and read."""
        self._protocol.connection_made(self)
        self.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`peername` is the destination, or the peer; `sockname` the proxy's address; `msocks` the connection."""
        match name:
            case "peername":
                return (str(self.connection.destination.host), self.connection.destination.port)
            case "sockname":
                bound = self.connection.bound
                return (str(bound.host), bound.port) if bound is not None else default
            case "msocks":
                return self.connection
            case "socket":
                return self.connection.leg
        return default

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, (asyncio.Protocol, asyncio.BufferedProtocol))
        self._protocol = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._paused = False
            self._reactor.call_soon(self.on_readable)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._stream.finishing:
            return
        self._stream.write(bytes(data))
        if not self._protocol_paused and self.get_write_buffer_size() > self._high:
            self._protocol_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._stream.finish()

    def get_write_buffer_size(self) -> int:
        """Bytes that no leg has taken yet."""
        return self._stream.written - self._stream.sent

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return (self._high, self._high)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Only `high` matters, up to the stream's own limit: writing goes on when the leg takes bytes again."""
        del low
        self._high = UNSENT_LIMIT_BYTES if high is None else min(high, UNSENT_LIMIT_BYTES)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._stream.finish()
        self._loop.call_soon(self._protocol.connection_lost, None)
        if self._draining:
            self._conclude(None)
        else:
            # What the peer still sends has no reader; it is read away, so that its FIN can come.
            self._reactor.call_soon(self.on_readable)

    def abort(self) -> None:
        if self._draining:
            self.close()
        self._closing = True
        self.connection.abort()

    # -- StreamOwner ------------------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        for _ in range(_TURNS):
            if (self._paused and not self._closing) or self._told_eof or self._over:
                return
            try:
                data = self._stream.read(_CHUNK_BYTES)
            except StreamGapError as gap:
                if self._draining:
                    self._conclude(SessionEnded.because(EndReason.BYTES_LOST))
                else:
                    self.connection.lost_bytes(gap)
                return
            if data is None:
                if self._draining:
                    self._loop.call_later(_REST_PATIENCE_S, self._give_up_the_rest, self._stream.position)
                return
            if not data:
                self._told_eof = True
                if not self._closing and not self._protocol.eof_received():
                    self.close()
                self._check_finished()
                return
            if not self._closing:
                self._feed(data)
        self._reactor.call_soon(self.on_readable)

    def on_writable(self) -> None:
        if self._protocol_paused:
            self._protocol_paused = False
            self._protocol.resume_writing()

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        self.connection.leg_lost(generation, error)

    def on_acknowledged(self) -> None:
        self._acknowledged = True
        self._check_finished()

    # -- ConnectionListener -----------------------------------------------------------------------------------------

    def on_carried(self, carried: Carried) -> None:
        self.events.moved(carried)

    def on_parked(self) -> None:
        self.events.parked()

    def on_ended(self, error: MsocksError | None) -> None:
        if error is not None and not self._closing:
            self._paused = False
            self.on_readable()  # what arrived before the end is the program's
        self.events.ended(error)
        if error is None and not self._closing and not self._told_eof:
            self._draining = True
            self._reactor.call_soon(self.on_readable)
        else:
            self._conclude(error)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        protocol: asyncio.BaseProtocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            while data:
                buffer = memoryview(protocol.get_buffer(len(data)))
                size = min(len(buffer), len(data))
                buffer[:size] = data[:size]
                protocol.buffer_updated(size)
                data = data[size:]
        else:
            self._protocol.data_received(data)

    def _conclude(self, error: MsocksError | None) -> None:
        self._over = True
        self._draining = False
        self._stream.close()
        if not self._closing or error is not None:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, error)

    def _give_up_the_rest(self, position: int) -> None:
        if self._draining and not self._paused and self._stream.position == position:
            self._conclude(SessionEnded.because(EndReason.BYTES_LOST))

    def _check_finished(self) -> None:
        if self._draining:
            self._conclude(None)
        if self._told_eof and self._acknowledged and self.connection.state is not SessionState.ENDED:
            self.connection.finished()
