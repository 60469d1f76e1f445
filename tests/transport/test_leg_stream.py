"""Two leg streams joined by real TCP connections that break, one after the other."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import subprocess
from collections.abc import AsyncIterator

import pytest
from tests.leg_pair import tcp_pair

from msocks.session.first_flight import FirstFlight
from msocks.session.leg_chain import StreamGapError
from msocks.session.resume import ClientPosition, StreamState, resume
from msocks.transport.leg_stream import LegStream
from msocks.transport.reactor import Reactor
from msocks.transport.sweep import Sweep


def kill(sock: socket.socket) -> None:
    """Destroy a connection from outside (SOCK_DESTROY): this end fails, the other one gets an RST."""
    port = f"sport = {sock.getsockname()[1]}"
    subprocess.run(["ss", "-K", "-n", "-t", "src", "127.0.0.1", port], check=True, capture_output=True)


class Program:
    """Writes a seeded stream as fast as it may, reads what comes."""

    def __init__(self, reactor: Reactor, sweep: Sweep, seed: int, length: int) -> None:
        self.stream = LegStream(reactor, self, sweep)
        self.random = random.Random(seed)
        self.remaining = length
        self.sent_digest = hashlib.sha256()
        self.received_digest = hashlib.sha256()
        self.lost: list[int] = []
        self.acknowledged = asyncio.Event()
        self.ended = asyncio.Event()
        self.reading = True

    def write_some(self, at_most: int = 1 << 30) -> None:
        while self.remaining and self.stream.writable and at_most > 0:
            size = min(self.remaining, at_most, self.random.choice((1, 7, 1500, 70_000)))
            data = self.random.randbytes(size)
            self.sent_digest.update(data)
            self.remaining -= size
            at_most -= size
            self.stream.write(data)
        if not self.remaining:
            self.stream.finish()

    def on_readable(self) -> None:
        while self.reading:
            data = self.stream.read(self.random.choice((1, 1000, 65536)))
            if data is None:
                return
            if not data:
                self.ended.set()
                return
            self.received_digest.update(data)

    def on_writable(self) -> None:
        self.write_some()

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        self.lost.append(generation)

    def on_acknowledged(self) -> None:
        self.acknowledged.set()


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    made = Reactor(asyncio.get_running_loop())
    yield made
    made.close()


def connect(
    mobile: Program, proxy: Program, generation: int, chance: random.Random | None = None
) -> tuple[socket.socket, socket.socket]:
    """What a RECONNECT does, without its messages; by `chance` the leg begins with a first flight, of any bytes."""
    near, far = tcp_pair()
    begins_at, length = mobile.stream.freeze(), 0
    received = mobile.stream.received()
    if chance is not None and 1 < begins_at < mobile.stream.sent and chance.random() < 0.7:
        begins_at = chance.randrange(begins_at, mobile.stream.sent)
        length = chance.randint(1, min(20_000, mobile.stream.sent - begins_at, mobile.stream.acknowledged()))
    mobile.stream.send_on(near, generation, begins_at, first_flight=length)
    proxy.stream.stop_sending()
    decided = resume(
        ClientPosition(received, begins_at, None, None, first_flight=length),
        StreamState(
            proxy.stream.received(), None, proxy.stream.acknowledged(), proxy.stream.sent_now, proxy.stream.sent, None
        ),
    )
    proxy.stream.receive_on(far, generation, decided.up_from)
    proxy.stream.send_on(far, generation, decided.down_from)
    if length:
        mobile.stream.go_on(FirstFlight(begins_at, length).leg_begins_at(decided.up_taken))
    mobile.stream.receive_on(near, generation, decided.down_from)
    return near, far


@pytest.mark.parametrize("seed", range(12))
async def test_every_byte_arrives_once_over_many_legs(reactor: Reactor, seed: int) -> None:
    chance = random.Random(seed)
    sweep = Sweep(reactor)
    mobile = Program(reactor, sweep, seed, 3_000_000)
    proxy = Program(reactor, sweep, seed + 1000, 3_000_000)
    legs = [connect(mobile, proxy, 1)]
    for generation in range(2, 40):
        mobile.write_some(chance.choice((0, 100, 200_000)))
        proxy.write_some(chance.choice((0, 100, 200_000)))
        mobile.reading = chance.random() < 0.7
        proxy.reading = chance.random() < 0.7
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if chance.random() < 0.6:  # the old leg dies before the new one stands; else they overlap
            kill(chance.choice(legs[-1]))
            await asyncio.sleep(chance.choice((0, 0.001)))
        legs.append(connect(mobile, proxy, generation, chance))
    mobile.reading = proxy.reading = True
    for program in (mobile, proxy):
        program.on_readable()
        program.write_some()
    for program in (mobile, proxy):
        await asyncio.wait_for(program.ended.wait(), 20)
        await asyncio.wait_for(program.acknowledged.wait(), 20)
    assert mobile.received_digest.digest() == proxy.sent_digest.digest()
    assert proxy.received_digest.digest() == mobile.sent_digest.digest()
    assert mobile.stream.retained == proxy.stream.retained == 0
    mobile.stream.close()
    proxy.stream.close()


async def test_behind_a_first_flight_nothing_is_sent_before_it_is_known_what(reactor: Reactor) -> None:
    mobile = Program(reactor, Sweep(reactor), 1, 30_000)
    first, peer = tcp_pair()
    mobile.stream.send_on(first, 1, 0)
    mobile.stream.receive_on(first, 1, 0)
    mobile.stream.freeze()
    mobile.write_some()
    near, far = tcp_pair()
    mobile.stream.send_on(near, 2, 10_000, first_flight=5_000)
    await asyncio.sleep(0.02)
    mobile.stream.flush()
    await asyncio.sleep(0.02)
    assert len(far.recv(65536)) == 5_000
    with pytest.raises(BlockingIOError):  # not even the end of the stream
        far.recv(1)
    mobile.stream.go_on(15_000)  # the server has 20,000: the flight was in vain
    mobile.stream.receive_on(near, 2, 0)
    await asyncio.sleep(0.02)
    assert len(far.recv(65536)) == 10_000
    assert far.recv(1) == b""
    mobile.stream.close()
    for sock in (peer, far):
        sock.close()


async def test_unread_bytes_of_a_reset_leg_are_read_before_the_next_one(reactor: Reactor) -> None:
    sweep = Sweep(reactor)
    mobile = Program(reactor, sweep, 1, 0)
    proxy = Program(reactor, sweep, 2, 50_000)
    mobile.reading = False
    near, far = connect(mobile, proxy, 1)
    proxy.write_some()
    await asyncio.sleep(0.05)
    assert mobile.stream.received() == 50_000
    assert mobile.stream.position == 0
    kill(far)
    await asyncio.sleep(0.05)
    assert mobile.lost == [1]
    assert mobile.stream.received() == 50_000
    connect(mobile, proxy, 2)
    mobile.reading = True
    mobile.on_readable()
    await asyncio.wait_for(mobile.ended.wait(), 5)
    assert mobile.received_digest.digest() == proxy.sent_digest.digest()
    assert near.fileno() == -1
    mobile.stream.close()
    proxy.stream.close()


async def test_a_gap_is_never_skipped(reactor: Reactor) -> None:
    sweep = Sweep(reactor)
    mobile = Program(reactor, sweep, 1, 0)
    near, far = tcp_pair()
    mobile.stream.receive_on(near, 1, 0)
    far.send(b"x" * 10)
    await asyncio.sleep(0.02)
    other, distant = tcp_pair()
    with pytest.raises(StreamGapError) as caught:
        mobile.stream.receive_on(other, 2, 11)
    assert (caught.value.available, caught.value.begins_at) == (10, 11)
    mobile.stream.close()
    for sock in (far, other, distant):
        sock.close()


async def test_a_reset_is_not_taken_for_the_end_of_the_stream(reactor: Reactor) -> None:
    sweep = Sweep(reactor)
    mobile = Program(reactor, sweep, 1, 0)
    near, far = tcp_pair()
    mobile.reading = False
    mobile.stream.receive_on(near, 1, 0)
    far.send(b"tail")
    far.close()  # RST, by SO_LINGER 0
    await asyncio.sleep(0.05)
    assert mobile.lost == [1]
    mobile.reading = True
    mobile.on_readable()
    assert mobile.stream.position == 4
    assert not mobile.stream.at_eof
    mobile.stream.close()


async def test_a_writer_is_told_to_wait_and_to_go_on(reactor: Reactor) -> None:
    sweep = Sweep(reactor)
    mobile = Program(reactor, sweep, 1, 40_000_000)
    proxy = Program(reactor, sweep, 2, 0)
    proxy.reading = False
    connect(mobile, proxy, 1)
    mobile.write_some()
    await asyncio.sleep(0.05)
    assert not mobile.stream.writable
    held = mobile.stream.retained
    assert 0 < held < 12_000_000
    proxy.reading = True
    proxy.on_readable()
    await asyncio.wait_for(proxy.ended.wait(), 20)
    assert proxy.received_digest.digest() == mobile.sent_digest.digest()
    mobile.stream.close()
    proxy.stream.close()


async def test_the_peers_word_ends_a_stream_whose_leg_was_reset_behind_the_fin(reactor: Reactor) -> None:
    """Reading a leg that was reset ends with b"" as well, FIN or not: only the peer can say that nothing is missing."""
    sweep = Sweep(reactor)
    mobile, proxy = Program(reactor, sweep, 1, 0), Program(reactor, sweep, 2, 50_000)
    near, _ = connect(mobile, proxy, 1)
    mobile.reading = False
    proxy.write_some()
    await asyncio.wait_for(proxy.acknowledged.wait(), 5)
    kill(near)
    await asyncio.sleep(0.05)
    assert mobile.lost == [1]
    mobile.reading = True
    mobile.on_readable()
    assert (mobile.stream.position, mobile.stream.at_eof) == (50_000, False)
    mobile.stream.confirm_end(50_000)
    await asyncio.wait_for(mobile.ended.wait(), 5)
    assert mobile.stream.at_eof
    mobile.stream.close()
    proxy.stream.close()
