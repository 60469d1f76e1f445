"""A small HTTP/1.1 server (RFC 9112) on a Unix socket: JSON for those on this host who ask a daemon.

h11 reads and writes the HTTP; here are the connections, the routes, and the ways in which an answer is sent.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11

from msocks.errors import MsocksError

MAX_BODY_BYTES = 16 * 1024
_MAX_HEAD_BYTES = 16 * 1024  # and what else the last piece of it brought
_PIECE = 16 * 1024
_IDLE_S = 60.0  # between requests, and between the parts of one
_LINGER_S = 1.0  # for what was sent behind a request that was refused half-way

_JSON = ("Content-Type", "application/json; charset=utf-8")
_JSON_LINES = ("Content-Type", "application/x-ndjson")


class RequestRefused(MsocksError):
    """The request cannot be understood, or asks for what does not exist.

    Attributes:
        status: 4xx.
        allowed: The methods that the path has, where it is the method that does not exist (RFC 9110 section 15.5.6).
    """

    def __init__(self, status: HTTPStatus, what: str, *, allowed: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.status = status
        self.allowed = tuple(allowed)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked.

    Attributes:
        names: What stands in the path for the route's ``{name}``.
        body: At most `MAX_BODY_BYTES`.
    """

    names: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One JSON value and the status that it is sent with."""

    values: Mapping[str, Any]
    status: HTTPStatus = HTTPStatus.OK


@dataclass(frozen=True, slots=True)
class Stream:
    """One JSON value on each line, until the generator ends or the client goes away."""

    lines: AsyncGenerator[Mapping[str, Any], None]


Handler = Callable[[Request], Awaitable[Answer | Stream]]


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers a method on a path such as ``/v1/flows/{id}/move``; a name stands for one part of a path."""

    method: str
    path: str
    handler: Handler

    def names(self, path: str) -> dict[str, str] | None:
        """What the names stand for in `path`; None where it is another path."""
        mine, asked = self.path.split("/"), path.split("/")
        if len(mine) != len(asked):
            return None
        pairs = list(zip(mine, map(unquote, asked), strict=True))
        if any(part != word and not (part.startswith("{") and word) for part, word in pairs):
            return None
        return {part[1:-1]: word for part, word in pairs if part.startswith("{")}


class LocalHttpServer:
    """Serves any number of connections, one request of each at a time.

    A client that closes its side while it waits has its handler cancelled.
    """

    def __init__(
        self, routes: Sequence[Route], on_error: Callable[[str, Exception], Answer], *, stopping_s: float = 1.0
    ) -> None:
        """
        Args:
            routes: What can be asked.
            on_error: Tells a client of what its request has met, RequestRefused among it: given what was asked
                (method and path) and the exception.
            stopping_s: How long answers that are being made when the server is closed may take.
        """
        self._routes = routes
        self._on_error = on_error
        self._stopping_s = stopping_s
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def start(self, listener: socket.socket) -> None:
        """Serve those who connect to a Unix socket, which is the server's from now on."""
        self._server = await asyncio.start_unix_server(self._on_connection, sock=listener, limit=_PIECE)

    async def close(self) -> None:
        """Take no more connections, and end those there are. Nothing happens where it was not started."""
        if self._server is None:
            return
        self._server.close()
        for task, connection in self._connections.items():
            if not connection.answering:
                task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=self._stopping_s)
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer, self._route, self._on_error)
        task = asyncio.get_running_loop().create_task(connection.serve())
        self._connections[task] = connection
        task.add_done_callback(self._connections.pop)

    def _route(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        found = [(route, names) for route in self._routes if (names := route.names(path)) is not None]
        for route, names in found:
            if route.method == method:
                return route.handler, names
        if found:
            raise RequestRefused(
                HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed", allowed=[route.method for route, _ in found]
            )
        raise RequestRefused(HTTPStatus.NOT_FOUND, "not found")


class _Connection:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        route: Callable[[str, str], tuple[Handler, dict[str, str]]],
        on_error: Callable[[str, Exception], Answer],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._route = route
        self._on_error = on_error
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._method = ""
        self.answering = False

    async def serve(self) -> None:
        """Until either side has had enough."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except (ConnectionError, TimeoutError):
            pass  # the client has gone, or does not go on
        finally:
            self._writer.close()

    async def _exchange(self) -> bool:
        """One request and its answer; False where none can follow."""
        asked, self._method = "the request", ""
        try:
            head = await self._next_event()
            if not isinstance(head, h11.Request):
                return False
            self._method, path = head.method.decode("ascii"), head.target.decode("ascii").partition("?")[0]
            asked = f"{self._method} {path}"
            body = await self._body()
        except h11.RemoteProtocolError as error:
            await self._refuse(asked, RequestRefused(HTTPStatus(error.error_status_hint), f"no HTTP: {error}"))
            return False
        except RequestRefused as error:
            await self._refuse(asked, error)
            return False
        self.answering = True
        answered = await self._while_connected(self._answer(asked, path, body))
        self.answering = False
        return answered and self._http.our_state is self._http.their_state is h11.DONE

    async def _body(self) -> bytes:
        body = b""
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise RequestRefused(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is too large, {MAX_BODY_BYTES} bytes are the most"
                )
        return body

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._send(h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[]))
            async with asyncio.timeout(_IDLE_S):
                self._http.receive_data(await self._reader.read(_PIECE))
        return event

    async def _while_connected(self, answering: Coroutine[Any, Any, None]) -> bool:
        """Whether the answer was sent before the client went away."""
        answer = asyncio.ensure_future(answering)
        watch = asyncio.ensure_future(self._reader.read(_PIECE))
        try:
            await asyncio.wait((answer, watch), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                if not (next_request := watch.result()) and not answer.done():
                    return False
                self._http.receive_data(next_request)
            await answer
        finally:
            answer.cancel()
            watch.cancel()
            await asyncio.gather(answer, watch, return_exceptions=True)
        return True

    async def _answer(self, asked: str, path: str, body: bytes) -> None:
        try:
            handler, names = self._route(self._method, path)
            answer = await handler(Request(names, body))
        except Exception as error:
            await self._send_answer(self._on_error(asked, error), _allow(error))
        else:
            await (self._stream(answer) if isinstance(answer, Stream) else self._send_answer(answer, []))

    async def _refuse(self, asked: str, error: RequestRefused) -> None:
        """Where the request did not come whole, so that no other can be told from it."""
        await self._send_answer(self._on_error(asked, error), [("Connection", "close")])
        self._writer.write_eof()
        # Closed at once, what the client still sends would be answered by the kernel, before it reads.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while await self._reader.read(_PIECE):
                    pass

    async def _send_answer(self, answer: Answer, headers: Sequence[tuple[str, str]]) -> None:
        body = json.dumps(answer.values).encode()
        self._send_head(answer.status, _JSON, ("Content-Length", str(len(body))), *headers)
        if self._method != "HEAD":
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        await self._writer.drain()

    async def _stream(self, stream: Stream) -> None:
        self._send_head(HTTPStatus.OK, _JSON_LINES, ("Cache-Control", "no-store"))
        async with aclosing(stream.lines) as lines:
            async for line in lines:
                self._send(h11.Data(data=json.dumps(line).encode() + b"\n"))
                await self._writer.drain()
        self._send(h11.EndOfMessage())
        await self._writer.drain()

    def _send_head(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        self._send(h11.Response(status_code=status, reason=status.phrase.encode("ascii"), headers=list(headers)))

    def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self._writer.write(data)


def _allow(error: Exception) -> list[tuple[str, str]]:
    allowed = error.allowed if isinstance(error, RequestRefused) else ()
    return [("Allow", ", ".join(allowed))] if allowed else []
