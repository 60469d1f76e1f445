"""A mobile node in plain Python: speaks to a real proxy over real sockets, with the protocol's own encoders."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msocks.protocol.control import ControlMessage, Hello, Welcome
from msocks.protocol.control_channel import ControlChannel, Side
from msocks.protocol.leg import Close, CloseMode, Connect, LegReply, LegRequest, LegStatus, Query, Reconnect
from msocks.protocol.leg_reply_codec import LegReplyDecoder
from msocks.protocol.leg_request_codec import encode_request
from msocks.transport.kernel import prepare_leg
from msocks.transport.tls import TlsMachine, client_context
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId

PATIENCE_S = 5.0
_OWN = ("down_fin_at", "up_fin_at", "handover_from", "first_flight")  # fields of a RECONNECT
MessageT = TypeVar("MessageT")


async def dial(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET if endpoint.address is not None and endpoint.address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    loop = asyncio.get_running_loop()
    try:
        await asyncio.wait_for(loop.sock_connect(sock, (str(endpoint.host), endpoint.port)), PATIENCE_S)
    except BaseException:
        sock.close()
        raise
    return sock


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(sock, data), PATIENCE_S)


async def receive(sock: socket.socket, size: int = 65536) -> bytes:
    """What comes next; b"" at the end."""
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, size), PATIENCE_S)


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await receive(sock, size - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {size} bytes came")
        data += piece
    return bytes(data)


async def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := await receive(sock):
        data += piece
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Channel:
    """A control channel of the mobile node."""

    def __init__(self, sock: socket.socket, pin: bytes) -> None:
        self.sock = sock
        self.tls = TlsMachine(client_context(), pin=pin)
        self.machine = ControlChannel(Side.CLIENT)
        self.messages: list[ControlMessage] = []

    async def open(self, hello: Hello) -> None:
        self.tls.start()
        while not self.tls.established:
            await send(self.sock, self.tls.outgoing())
            self.tls.receive(await receive(self.sock))
        await self.say(hello)

    async def say(self, message: ControlMessage) -> None:
        self.tls.send(self.machine.send(message))
        await send(self.sock, self.tls.outgoing())

    async def hear(self, kind: type[MessageT]) -> MessageT:
        """The next message of a kind; others are kept for later."""
        while True:
            for index, message in enumerate(self.messages):
                if isinstance(message, kind):
                    del self.messages[index]
                    return message
            data = await receive(self.sock)
            if not data:
                raise EOFError(f"the channel ended, and no {kind.__name__} came")
            self.messages += self.machine.receive(self.tls.receive(data))

    def close(self) -> None:
        self.sock.close()


@dataclass
class Leg:
    """A leg whose request is on its way, or answered."""

    sock: socket.socket
    request: LegRequest
    decoder: LegReplyDecoder
    verified: bool = False
    trailing: bytes = b""

    async def reply(self) -> LegReply:
        while True:
            data = await receive(self.sock, self.decoder.bytes_needed)
            if not data:
                raise EOFError("the leg ended without a reply")
            received = self.decoder.receive(data)
            if received is not None:
                self.verified = received.verified
                return received.reply


class MobileNode:
    """Keys, numbers and legs of one association."""

    def __init__(self, proxy: Endpoint, link: AccessLink) -> None:
        self.proxy = proxy
        self.link = link
        self.association = AssociationId.generate()
        self.numbers = itertools.count(1)
        self.sockets: list[socket.socket] = []
        self.channels: list[Channel] = []
        self.welcome: Welcome | None = None

    def hello(self, **changes: Any) -> Hello:
        fields: dict[str, Any] = {
            "user": self.link.user,
            "secret": self.link.secret,
            "association": self.association,
            "smallest_mtu": 1500,
            "link": "test0",
            "agent_name": "test",
            "agent_version": "1",
        }
        return Hello(**(fields | changes))

    async def open_channel(self, **changes: Any) -> Channel:
        channel = Channel(await dial(self.proxy), self.link.pin)
        self.channels.append(channel)
        await channel.open(self.hello(**changes))
        return channel

    async def associate(self) -> Channel:
        channel = await self.open_channel()
        self.welcome = await channel.hear(Welcome)
        return channel

    @property
    def keys(self) -> Welcome:
        assert self.welcome is not None
        return self.welcome

    def fields(self, session: SessionId, generation: int, **changes: Any) -> dict[str, Any]:
        return {
            "association": self.association,
            "leg_number": next(self.numbers),
            "expires_ms": self.keys.proxy_ms + 30_000,
            "session": session,
            "generation": generation,
        } | changes

    async def ask(self, request: LegRequest, early: bytes = b"", key_up: bytes | None = None) -> Leg:
        """Send a request, with `early` behind it in the same write."""
        encoded = encode_request(request, key_up or self.keys.key_up)
        sock = await dial(self.proxy)
        self.sockets.append(sock)
        prepare_leg(sock)
        await send(sock, encoded + early)
        return Leg(sock, request, LegReplyDecoder(encoded, self.keys.key_down))

    async def connect(
        self, session: SessionId, destination: Endpoint, generation: int = 1, early: bytes = b"", **changes: Any
    ) -> Leg:
        fields = self.fields(session, generation, **changes)
        return await self.ask(Connect(destination=destination, **fields), early)

    async def reconnect(
        self, session: SessionId, generation: int, received: int, upstream_from: int, early: bytes = b"", **changes: Any
    ) -> Leg:
        own = {name: changes.pop(name) for name in _OWN if name in changes}
        key_up = changes.pop("key_up", None)
        fields = self.fields(session, generation, **changes)
        request = Reconnect(received=received, upstream_from=upstream_from, **own, **fields)
        return await self.ask(request, early, key_up)

    async def query(self, session: SessionId) -> LegReply:
        return await (await self.ask(Query(**self.fields(session, 0)))).reply()

    async def close_session(
        self, session: SessionId, generation: int, mode: CloseMode = CloseMode.RESET, up_fin_at: int | None = None
    ) -> LegReply:
        request = Close(mode=mode, up_fin_at=up_fin_at, **self.fields(session, generation))
        return await (await self.ask(request)).reply()

    async def open_session(self, destination: Endpoint) -> tuple[SessionId, Leg]:
        """A session that is connected."""
        session = SessionId.generate()
        leg = await self.connect(session, destination)
        reply = await leg.reply()
        assert (reply.status, leg.verified) == (LegStatus.OK, True)
        return session, leg

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        for channel in self.channels:
            channel.close()


@dataclass
class Server:
    """An ordinary TCP server; the test plays its part by hand."""

    listener: socket.socket
    endpoint: Endpoint
    accepted: list[socket.socket] = field(default_factory=list)

    async def accept(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock, _ = await asyncio.wait_for(loop.sock_accept(self.listener), PATIENCE_S)
        self.accepted.append(sock)
        return sock


@contextlib.asynccontextmanager
async def server_on(host: str = "127.0.0.1") -> AsyncIterator[Server]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    listener.setblocking(False)
    server = Server(listener, Endpoint.from_sockaddr(listener.getsockname()))
    try:
        yield server
    finally:
        for sock in (listener, *server.accepted):
            sock.close()
