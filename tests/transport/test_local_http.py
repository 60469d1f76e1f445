"""The daemons' HTTP on a Unix socket, byte by byte."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from msocks.transport.local_http import (
    MAX_BODY_BYTES,
    Answer,
    LocalHttpServer,
    Request,
    RequestRefused,
    Route,
    Stream,
)

HOST = b"Host: here\r\n"


class Service:
    """What is asked, and what becomes of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def echo(self, request: Request) -> Answer:
        self.asked.append((dict(request.names), request.body))
        return Answer({"body": request.body.decode()})

    async def wait(self, _request: Request) -> Answer:
        self.waiting.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Answer({})

    async def fail(self, _request: Request) -> Answer:
        raise ZeroDivisionError

    async def count(self, _request: Request) -> Stream:
        return Stream(self._count())

    async def _count(self) -> AsyncGenerator[Mapping[str, Any], None]:
        try:
            yield {"n": 1}
            self.waiting.set()
            await self.go_on.wait()
            yield {"n": 2}
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def told(asked: str, error: Exception) -> Answer:
    status = error.status if isinstance(error, RequestRefused) else HTTPStatus.INTERNAL_SERVER_ERROR
    return Answer({"asked": asked}, status)


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def path(service: Service, tmp_path: Path) -> AsyncIterator[Path]:
    async with served(service, tmp_path / "socket") as path:
        yield path


@asynccontextmanager
async def served(service: Service, path: Path, **options: float) -> AsyncIterator[Path]:
    routes = [
        Route("POST", "/echo/{one}/of/{two}", service.echo),
        Route("PUT", "/echo/{one}/of/{two}", service.echo),
        Route("GET", "/wait", service.wait),
        Route("GET", "/fail", service.fail),
        Route("GET", "/count", service.count),
    ]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    server = LocalHttpServer(routes, told, **options)
    await server.start(listener)
    yield path
    await server.close()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """For at most 5 s."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(5):
            yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def say(path: Path, *pieces: bytes) -> bytes:
    """Everything that is answered to what is sent piece by piece, until the other side closes."""
    async with connected(path) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.005)
        return await reader.read()


def post(body: bytes, *headers: bytes, target: bytes = b"/echo/a%2Fb/of/c?d=e") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST " + target + b" HTTP/1.1\r\n" + HOST + length + b"".join(headers) + b"\r\n" + body


def get(target: str, *headers: bytes, method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\n".encode() + HOST + b"".join(headers) + b"\r\n"


CLOSE = b"Connection: close\r\n"


async def test_several_requests_on_one_connection_however_they_are_cut(service: Service, path: Path) -> None:
    whole = post(b"one") + post(b"two") + post(b"three", CLOSE)
    for size in (1, 7, len(whole)):
        service.asked.clear()
        answer = await say(path, *(whole[at : at + size] for at in range(0, len(whole), size)))
        assert service.asked == [({"one": "a/b", "two": "c"}, body) for body in (b"one", b"two", b"three")]
        bodies = [part.partition(b"}")[0] for part in answer.split(b'{"body": ')[1:]]
        assert bodies == [b'"one"', b'"two"', b'"three"']
        assert answer.count(b"HTTP/1.1 200 OK\r\n") == 3


async def test_a_body_in_chunks_that_waits_to_be_asked_for(service: Service, path: Path) -> None:
    head = get("/echo/a/of/b", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", CLOSE, method="PUT")
    answer = await say(path, head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert answer.endswith(b'{"body": "abcde"}')


async def test_http_1_0_is_answered_and_the_connection_closed(service: Service, path: Path) -> None:
    service.go_on.set()
    answer = await say(path, b"GET /count HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"chunked" not in head
    assert body == b'{"n": 1}\n{"n": 2}\n'


@pytest.mark.parametrize(
    ("said", "status", "asked"),
    [
        (get("/nowhere", CLOSE), 404, "GET /nowhere"),
        (get("/echo//of/x", CLOSE, method="POST"), 404, "POST /echo//of/x"),
        (get("/wait/more", CLOSE), 404, "GET /wait/more"),
        (get("/wait", CLOSE, method="POST"), 405, "POST /wait"),
        (get("/fail?why", CLOSE), 500, "GET /fail"),
        (b"GET /wait HTTP/1.1\r\n\r\n", 400, "the request"),
        (b"\x00\x01\x02\r\n\r\n", 400, "the request"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, 431, "the request"),
        (post(b"", target=b"/echo/a/of/b").replace(b": 0", b": many"), 400, "the request"),
        (post(b"x" * MAX_BODY_BYTES + b"x"), 413, "POST /echo/a%2Fb/of/c"),
        (post(b"x" * 300_000), 413, "POST /echo/a%2Fb/of/c"),
    ],
)
async def test_what_cannot_be_served(path: Path, said: bytes, status: int, asked: str) -> None:
    answer = await say(path, said)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split(b" ")[1]) == status
    assert json.loads(body) == {"asked": asked}
    assert b"\r\nConnection: close" in head


async def test_a_body_of_the_greatest_length_is_taken(service: Service, path: Path) -> None:
    await say(path, post(b"x" * MAX_BODY_BYTES, CLOSE))
    assert [len(body) for _, body in service.asked] == [MAX_BODY_BYTES]


async def test_a_method_that_does_not_exist_says_which_do(path: Path) -> None:
    answer = await say(path, get("/echo/a/of/b", CLOSE, method="HEAD"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: POST, PUT\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")  # to HEAD no body is sent


@pytest.mark.parametrize("target", ["/wait", "/count"])
async def test_who_goes_away_is_not_waited_for(service: Service, path: Path, target: str) -> None:
    async with connected(path) as (_, writer):
        writer.write(get(target))
        await service.waiting.wait()
        writer.close()
        await service.cancelled.wait()


async def test_what_is_sent_while_an_answer_is_made_is_the_next_request(service: Service, path: Path) -> None:
    saying = asyncio.create_task(say(path, get("/wait"), post(b"next", CLOSE)))
    async with asyncio.timeout(5):
        await service.waiting.wait()
        await asyncio.sleep(0.05)
        assert service.asked == []
        service.go_on.set()
        assert (await saying).endswith(b'{"body": "next"}')


async def test_a_stream_comes_as_it_is_made_and_ends_with_its_source(service: Service, path: Path) -> None:
    async with connected(path) as (reader, writer):
        writer.write(get("/count"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"application/x-ndjson" in head
        assert await reader.readuntil(b"}\n\r\n") == b'9\r\n{"n": 1}\n\r\n'
        service.go_on.set()
        assert await reader.readuntil(b"0\r\n\r\n") == b'9\r\n{"n": 2}\n\r\n0\r\n\r\n'


async def test_closing_waits_a_moment_for_answers_and_for_nobody_else(service: Service, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with served(service, tmp_path / "socket") as path:
            idle, _ = await stack.enter_async_context(connected(path))
            asking = asyncio.create_task(say(path, get("/wait", CLOSE)))
            await service.waiting.wait()
            asyncio.get_running_loop().call_later(0.1, service.go_on.set)
        assert (await asking).startswith(b"HTTP/1.1 200 ")
        assert await idle.read() == b""


async def test_closing_does_not_wait_for_ever(service: Service, tmp_path: Path) -> None:
    async with served(service, tmp_path / "socket", stopping_s=0.05) as path:
        asking = asyncio.create_task(say(path, get("/wait")))
        await service.waiting.wait()
    assert await asking == b""
    assert service.cancelled.is_set()
