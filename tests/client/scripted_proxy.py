"""A proxy that does on its control channels what a test tells it to: real TLS, real messages, no service."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from tests.client.mobile_lab import on_host
from tests.own_server import serving

from msocks.protocol.control import ControlMessage, Hello, Welcome
from msocks.protocol.control_channel import ControlChannel, Side
from msocks.transport.tls import server_context
from msocks.values.endpoint import Endpoint
from msocks_lab import Lab


class ScriptedChannel:
    """One connection, after the TLS handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._channel = ControlChannel(Side.PROXY)
        self._heard: list[ControlMessage] = []

    async def hear(self) -> ControlMessage:
        """The next message; EOFError where the client has gone."""
        while not self._heard:
            data = await self._reader.read(4096)
            if not data:
                raise EOFError
            self._heard += self._channel.receive(data)
        return self._heard.pop(0)

    async def say(self, message: ControlMessage) -> None:
        self._writer.write(self._channel.send(message))
        await self._writer.drain()

    def write_raw(self, plaintext: bytes) -> None:
        self._writer.write(plaintext)

    async def welcome(self, key: int = 1) -> Hello:
        """Take the HELLO and answer it with keys that are all `key`."""
        hello = await self.hear()
        assert isinstance(hello, Hello)
        await self.say(
            Welcome(
                association=hello.association,
                key_up=bytes([key]) * 32,
                key_down=bytes([key + 100]) * 32,
                proxy_ms=0,
                detach_grace_s=60,
                max_sessions=0,
                observed=Endpoint.of("198.51.100.1", 4711),
                server_version="scripted",
            )
        )
        return hello


Script = Callable[[ScriptedChannel], Awaitable[None]]


@contextlib.asynccontextmanager
async def scripted_proxy(lab: Lab, port: int, identity: Path, script: Script) -> AsyncIterator[None]:
    """Run `script` for every channel that comes to that port of the lab's proxy; the channel ends with it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(EOFError, ConnectionError):
                await script(ScriptedChannel(reader, writer))
        finally:
            writer.transport.abort()

    with on_host(lab, "proxy"):
        listener = socket.create_server((lab.proxy.ipv4, port))
    async with serving(listener, serve, server_context(identity)):
        yield
