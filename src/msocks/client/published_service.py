"""A local service that peers reach at a port of the proxy: what they send goes to it, and its answers back to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from msocks.client.events import Event
from msocks.client.listener import MobileListener
from msocks.client.streams import MobileStreamWriter
from msocks.values.endpoint import Endpoint

_log = structlog.get_logger("msocks.client.published_service")

_CHUNK_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Accepted:
    """A peer has connected.

    Attributes:
        peer: Its address.
        link: What carries the connection first.
    """

    peer: Endpoint
    link: str | None


Report: TypeAlias = Callable[[str, Accepted | Event], None]
"""Is told of a session, by its id, what happens; `Ended` comes last."""


class PublishedService:
    """See the module. Any number of connections at once."""

    def __init__(self, listener: MobileListener, service: Endpoint, report: Report) -> None:
        self._listener = listener
        self._service = service
        self._report = report
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accept until cancelled. Raises ListenError when the proxy has taken the port back."""
        try:
            while True:
                reader, writer = await self._listener.accept()
                task = asyncio.get_running_loop().create_task(self._carry(reader, writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()

    async def _carry(self, reader: asyncio.StreamReader, writer: MobileStreamWriter) -> None:
        self._report(writer.session, Accepted(writer.connection.destination, writer.link))
        telling = asyncio.get_running_loop().create_task(self._tell(writer))
        try:
            local_reader, local_writer = await asyncio.open_connection(str(self._service.host), self._service.port)
        except OSError as error:
            _log.warning(
                "service_unreachable",
                service=str(self._service),
                reason=error.strerror or str(error),
                remedy="start the service, or name the port at which it listens",
            )
            writer.transport.abort()  # the peer gets the reset that it would have got here
        else:
            await self._couple(reader, writer, local_reader, local_writer)
        await telling

    async def _couple(
        self,
        reader: asyncio.StreamReader,
        writer: MobileStreamWriter,
        local_reader: asyncio.StreamReader,
        local_writer: asyncio.StreamWriter,
    ) -> None:
        orderly = False
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, local_writer))
                both.create_task(_copy(local_reader, writer))
            orderly = True
        except* OSError:
            pass  # one end has failed; the other shall not take it for an end in good order
        finally:
            if not orderly:
                local_writer.transport.abort()
                writer.transport.abort()
            local_writer.close()
            writer.close()

    async def _tell(self, writer: MobileStreamWriter) -> None:
        async for event in writer.events():
            self._report(writer.session, event)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end of what is read, which is passed on."""
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):  # it has gone already, having got all that it wanted
        writer.write_eof()
