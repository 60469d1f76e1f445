"""A connection of the client alone, over real sockets: the test plays the proxy at their other ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.client.authority import OwnAuthority
from tests.leg_pair import tcp_pair

from msocks.client.connection import Connection
from msocks.client.dial_gates import DialGates
from msocks.client.ended_sessions import EndedSession
from msocks.errors import MsocksError
from msocks.protocol.control import ParkedLeg
from msocks.protocol.leg import LegReply, LegRequest, LegStatus
from msocks.protocol.leg_reply_codec import encode_reply
from msocks.protocol.leg_request_codec import LegRequestDecoder
from msocks.session.leg_chain import StreamGapError
from msocks.session.mobile_effects import Carried
from msocks.transport.leg_stream import LegStream
from msocks.transport.reactor import Reactor
from msocks.transport.sweep import Sweep
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId

_MAC_BYTES = 32
RTT_S = {"wifi": 0.005, "lte": 0.05}


class Far:
    """The proxy's end of a leg."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._request = b""

    async def request(self) -> LegRequest:
        decoder, loop = LegRequestDecoder(), asyncio.get_running_loop()
        while decoder.bytes_needed:
            data = await asyncio.wait_for(loop.sock_recv(self.sock, decoder.bytes_needed), 5)
            assert data, "the leg was closed"
            self._request += data
            signed = decoder.receive(data)
            if signed is not None:
                return signed.request
        raise AssertionError

    def accept(self, *, down_from: int, up_acked: int = 0, behind: bytes = b"") -> None:
        reply = LegReply(status=LegStatus.OK, down_from=down_from, up_acked=up_acked)
        self.sock.send(encode_reply(reply, self._request[-_MAC_BYTES:], Node.key_down) + behind)


class Node(OwnAuthority):
    """The network and authority of a connection, its stream's owner, and whom it tells."""

    def __init__(self, gates: DialGates) -> None:
        super().__init__()
        self.reactor = Reactor(asyncio.get_running_loop())
        self.gates = gates
        self.legs: asyncio.Queue[Far] = asyncio.Queue()
        self.far: list[Far] = []
        self.carried: list[int] = []
        self.ended: list[MsocksError | None] = []
        self.closed: list[int] = []  # generations of CLOSEs
        self.received = b""
        self._news = asyncio.Event()
        self.stream = LegStream(self.reactor, self, Sweep(self.reactor))
        self.connection = Connection(self, Endpoint.of("192.0.2.1", 80), self.stream, self)

    async def dial(self, link: str) -> socket.socket:
        near, far = tcp_pair()
        self.far.append(Far(far))
        self.legs.put_nowait(self.far[-1])
        return near

    def park(self, leg: ParkedLeg) -> None: ...

    def close_session(self, session: SessionId, generation: int) -> None:
        self.closed.append(generation)

    def is_split(self, link: str) -> bool:
        return False

    def is_doubtful(self, link: str) -> bool:
        return False

    def finished(self, link: str, ended: EndedSession) -> None: ...

    def sent(self, link: str) -> None: ...

    def forget(self, connection: Connection) -> None: ...

    def ask_position(self, link: str, session: SessionId) -> float | None:
        return None

    def take_spare(self, link: str) -> socket.socket | None:
        return None

    def carries(self) -> None: ...

    def on_carried(self, carried: Carried) -> None:
        self.carried.append(carried.generation)

    def on_parked(self) -> None: ...

    def on_ended(self, error: MsocksError | None) -> None:
        self.ended.append(error)
        self._news.set()

    def on_readable(self) -> None:
        try:
            while data := self.stream.read(65536):
                self.received += data
                self._news.set()
        except StreamGapError as gap:
            self.connection.lost_bytes(gap)

    def on_writable(self) -> None: ...

    def on_acknowledged(self) -> None: ...

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        self.connection.leg_lost(generation, error)

    def links(self, *names: str) -> None:
        self.connection.links_changed(names, RTT_S)

    async def leg(self) -> tuple[Far, LegRequest]:
        far = await asyncio.wait_for(self.legs.get(), 5)
        return far, await far.request()

    async def until_received(self, data: bytes) -> None:
        async with asyncio.timeout(5):
            while self.received != data and not self.ended:
                self._news.clear()
                await self._news.wait()
        assert (self.received, self.ended) == (data, [])


@asynccontextmanager
async def living(gates: DialGates | None = None) -> AsyncIterator[Node]:
    """One for the time of the block, with gates of its own or those of others."""
    made = Node(gates or DialGates())
    try:
        yield made
    finally:
        made.stream.close()
        for far in made.far:
            far.sock.close()
        made.reactor.close()
