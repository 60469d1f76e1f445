"""A read that gives fewer bytes than asked for is not tried again: what that saves, and what it must not miss."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from msocks.session.leg_chain import StreamGapError
from msocks.transport.kernel import reset_on_close
from msocks.transport.leg_stream import LegStream
from msocks.transport.reactor import Reactor
from msocks.transport.socket_pump import SocketPump
from msocks.transport.sweep import Sweep


class ReadSocket(socket.socket):
    """Counts its reads; `before_read` runs once, between what the reactor reported and the next read."""

    reads = 0
    before_read: Callable[[], None] | None = None
    after_read: Callable[[], None] | None = None

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        self.reads += 1
        hook, self.before_read = self.before_read, None
        if hook is not None:
            hook()
        data = super().recv(bufsize, flags)
        if self.after_read is not None:
            self.after_read()
        return data


def tcp_pair() -> tuple[ReadSocket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    reading = ReadSocket(fileno=near.detach())
    reading.setblocking(False)
    return reading, far


class Reader:
    """Reads a leg, or takes what a pump has read, whichever it owns."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.stream: LegStream | None = None
        self.ended = asyncio.Event()
        self.lost = asyncio.Event()

    def on_readable(self) -> None:
        assert self.stream is not None
        while (data := self.stream.read(65536)) is not None:
            if not data:
                self.ended.set()
                return
            self.got += data

    def on_writable(self) -> None: ...

    def on_acknowledged(self) -> None: ...

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        self.lost.set()

    def on_socket_failed(self, error: OSError) -> None:
        self.lost.set()

    def on_gap(self, error: StreamGapError) -> None:
        raise error

    def on_finished(self) -> None: ...


@dataclass
class Case:
    """A socket that is read, its peer, and what came of the reading."""

    sock: ReadSocket
    peer: socket.socket
    reader: Reader
    close: Callable[[], None]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


def a_leg(reactor: Reactor) -> Case:
    near, far = tcp_pair()
    reader = Reader()
    reader.stream = LegStream(reactor, reader, Sweep(reactor))
    reader.stream.receive_on(near, 1, 0)
    return Case(near, far, reader, reader.stream.close)


def a_pumped_socket(reactor: Reactor) -> Case:
    near, far = tcp_pair()
    reader = Reader()
    pump = SocketPump(reactor, near, reader, Sweep(reactor))
    leg, other = tcp_pair()
    pump.stream.receive_on(leg, 1, 0)
    pump.stream.send_on(leg, 1, 0)
    pump.start()

    def on_other(_events: int) -> None:
        while True:
            try:
                data = other.recv(65536)
            except OSError:
                return
            if not data:
                reader.ended.set()
                return
            reader.got += data

    reactor.watch(other.fileno(), on_other)

    def close() -> None:
        pump.close()
        reactor.unwatch(other.fileno())
        other.close()

    return Case(near, far, reader, close)


@pytest.fixture(params=[a_leg, a_pumped_socket], ids=lambda make: make.__name__)
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    reactor = Reactor(asyncio.get_running_loop())
    made: Case = request.param(reactor)
    await asyncio.sleep(0.02)
    made.sock.reads = 0
    yield made
    made.close()
    made.peer.close()
    reactor.close()


async def test_a_message_costs_one_read(case: Case) -> None:
    for _ in range(3):
        case.reader.got.clear()
        case.peer.send(b"message")
        await case.until(lambda: case.reader.got == b"message")
    await asyncio.sleep(0.02)
    assert case.sock.reads == 3


async def test_a_fin_that_came_with_the_bytes_is_read(case: Case) -> None:
    case.peer.send(b"last words")
    case.peer.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(case.reader.ended.wait(), 5)
    assert case.reader.got == b"last words"


def shut(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def say_and_shut(peer: socket.socket) -> None:
    peer.send(b", and more")
    peer.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("meanwhile", [shut, say_and_shut])
async def test_a_fin_that_comes_between_the_report_and_the_read_is_read(
    case: Case, meanwhile: Callable[[socket.socket], None]
) -> None:
    case.sock.before_read = lambda: meanwhile(case.peer)
    case.peer.send(b"words")
    await asyncio.wait_for(case.reader.ended.wait(), 5)
    assert bytes(case.reader.got) == (b"words" if meanwhile is shut else b"words, and more")


async def test_a_reset_that_comes_between_the_report_and_the_read_is_told(case: Case) -> None:
    def reset() -> None:
        reset_on_close(case.peer)
        case.peer.close()

    case.sock.before_read = reset
    case.peer.send(b"words")
    await asyncio.wait_for(case.reader.lost.wait(), 5)


@pytest.mark.parametrize("when", ["with the bytes", "before the read"])
async def test_an_urgent_byte_cuts_a_read_short_and_nothing_is_left_lying(case: Case, when: str) -> None:
    def urgent() -> None:
        case.peer.send(b"!", socket.MSG_OOB)
        case.peer.send(b" behind")

    if when == "before the read":
        case.sock.before_read = urgent
    case.peer.send(b"before")
    if when == "with the bytes":
        urgent()
    await case.until(lambda: case.reader.got == b"before! behind")


async def test_bytes_that_come_right_after_a_short_read_are_read(case: Case) -> None:
    def answer() -> None:
        if case.sock.reads < 200:
            case.peer.send(b"x")

    case.sock.after_read = answer
    case.peer.send(b"x")
    await case.until(lambda: len(case.reader.got) == 200)
