"""What every datapath does, whichever it is: driven through the interface, judged at the two ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from msocks.datapath.interface import Attachment, Conduit, Datapath, LegEnd
from msocks.datapath.relay import RelayDatapath
from msocks.protocol.leg import DatapathReason
from msocks.session.resume import ClientPosition, StreamState, resume
from msocks.transport.kernel import prepare_leg, reset_on_close
from msocks.transport.reactor import Reactor

REPLY = b"<reply>"


def relay(reactor: Reactor) -> Datapath:
    return RelayDatapath(reactor, DatapathReason.CHOSEN_BY_OPERATOR)


@dataclass
class Owner:
    legs_ended: list[tuple[int, LegEnd]] = field(default_factory=list)
    resets: list[OSError] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def on_leg_ended(self, generation: int, end: LegEnd) -> None:
        self.legs_ended.append((generation, end))

    def on_server_reset(self, error: OSError) -> None:
        self.resets.append(error)

    def on_bytes_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def on_finished(self) -> None:
        self.finished.set()


async def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


@dataclass
class Bench:
    """A conduit between a server that this test plays and mobile legs that it plays as well."""

    conduit: Conduit
    owner: Owner
    server: socket.socket
    mobiles: list[socket.socket] = field(default_factory=list)
    down_from: int = 0  # D of the last leg

    async def attach(
        self, generation: int, received: int = 0, upstream_from: int = 0, early: bytes = b"", handover: bool = False
    ) -> socket.socket:
        mobile, leg = await tcp_pair()
        self.mobiles.append(mobile)
        prepare_leg(mobile)
        if not handover:
            self.conduit.stop_leg()
            await self.conduit.settle()
        position = ClientPosition(received, upstream_from, None, None, handover)
        decided = resume(position, self.conduit.state())
        self.conduit.attach(Attachment(leg, generation, REPLY, decided.down_from, upstream_from, early, handover))
        self.down_from = decided.down_from
        assert await read(mobile, len(REPLY)) == REPLY
        return mobile


@pytest.fixture(params=[relay])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    reactor = Reactor(asyncio.get_running_loop())
    make: Callable[[Reactor], Datapath] = request.param
    datapath = make(reactor)
    server, server_leg = await tcp_pair()
    owner = Owner()
    conduit = datapath.open(server_leg, owner, resumable=True)
    made = Bench(conduit, owner, server)
    yield made
    conduit.close(reset=True)
    datapath.close()
    for sock in (server, *made.mobiles):
        sock.close()
    reactor.close()


async def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, size - len(data)), 10)
        if not piece:
            break
        data += piece
    return data


async def write(sock: socket.socket, data: bytes) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(sock, data), 10)


async def read_into(target: bytearray, sock: socket.socket, until: int) -> None:
    while len(target) < until:
        target += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, until - len(target)), 10)


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came about")


async def test_bytes_go_both_ways_behind_the_reply(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"request")
    assert await read(bench.server, 7) == b"request"
    await write(bench.server, b"answer")
    assert await read(mobile, 6) == b"answer"
    await eventually(lambda: (bench.conduit.counters().up, bench.conduit.counters().down) == (7, 6))


async def test_a_server_that_speaks_first_is_heard(bench: Bench) -> None:
    await write(bench.server, b"220 ready\r\n")
    mobile = await bench.attach(1)
    assert await read(mobile, 11) == b"220 ready\r\n"


async def test_bytes_behind_the_request_come_first(bench: Bench) -> None:
    mobile = await bench.attach(1, early=b"hello, ")
    await write(mobile, b"server")
    assert await read(bench.server, 13) == b"hello, server"


async def test_half_close_from_the_mobile(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"all of it")
    mobile.shutdown(socket.SHUT_WR)
    assert await read(bench.server, 100) == b"all of it"
    await write(bench.server, b"still here")
    assert await read(mobile, 10) == b"still here"
    assert bench.conduit.state().up_fin == 9


async def test_half_close_from_the_server(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(bench.server, b"all of it")
    bench.server.shutdown(socket.SHUT_WR)
    assert await read(mobile, 100) == b"all of it"
    await write(mobile, b"still here")
    assert await read(bench.server, 10) == b"still here"
    assert bench.conduit.state().down_fin == 9


async def test_both_ends_make_it_finished(bench: Bench) -> None:
    mobile = await bench.attach(1)
    mobile.shutdown(socket.SHUT_WR)
    bench.server.shutdown(socket.SHUT_WR)
    assert await read(mobile, 1) == b""
    assert await read(bench.server, 1) == b""
    await asyncio.wait_for(bench.owner.finished.wait(), 10)
    assert bench.owner.resets == []


async def test_a_reset_of_the_mobile_leg_only_detaches(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"one ")
    assert await read(bench.server, 4) == b"one "
    mobile.close()  # RST
    await eventually(lambda: bench.owner.legs_ended == [(1, LegEnd.RESET)])
    await write(bench.server, b"held")
    mobile = await bench.attach(2, received=0, upstream_from=4)
    assert await read(mobile, 4) == b"held"
    await write(mobile, b"two")
    assert await read(bench.server, 3) == b"two"


async def test_a_reset_of_the_server_leg_is_told(bench: Bench) -> None:
    await bench.attach(1)
    reset_on_close(bench.server)
    bench.server.close()
    await eventually(lambda: len(bench.owner.resets) == 1)


async def test_an_abort_resets_the_server(bench: Bench) -> None:
    await bench.attach(1)
    bench.conduit.close(reset=True)
    with pytest.raises(ConnectionResetError):
        await read(bench.server, 1)


async def test_what_the_mobile_has_not_received_is_sent_again(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(bench.server, b"x" * 5000)
    await eventually(lambda: bench.conduit.state().down_acknowledged == 5000)
    # Its kernel has ACKed 5000; a leg that says R = 1000 gets the rest from there on, not from R.
    again = await bench.attach(2, received=1000)
    await write(bench.server, b"y")
    assert await read(again, 1) == b"y"
    assert await read(mobile, 5000) == b"x" * 5000  # the old leg's queue stays readable


async def test_upstream_that_was_taken_already_is_skipped(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(mobile, b"0123456789")
    assert await read(bench.server, 10) == b"0123456789"
    again = await bench.attach(2, upstream_from=4)
    await write(again, b"456789abc")
    assert await read(bench.server, 3) == b"abc"


async def test_the_unread_queue_of_the_old_leg_goes_first(bench: Bench) -> None:
    mobile = await bench.attach(1)
    sent = 0
    blob = bytes(range(256)) * 256
    for _ in range(20):  # the server does not read: everything fills
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += mobile.send(blob[sent % len(blob) :])
        await asyncio.sleep(0.01)
    taken = bench.conduit.state().up_taken
    again = await bench.attach(2, upstream_from=taken)
    await write(again, b"end")
    again.shutdown(socket.SHUT_WR)
    received = await read(bench.server, taken + 3)
    assert received[-3:] == b"end"
    assert received[:taken] == (blob * (taken // len(blob) + 1))[:taken]
    assert taken > len(blob)


async def test_a_leg_can_be_restarted_after_a_refusal(bench: Bench) -> None:
    mobile = await bench.attach(1)
    await write(bench.server, b"before ")
    bench.conduit.stop_leg()
    await bench.conduit.settle()
    await write(bench.server, b"after")
    bench.conduit.restart_leg()
    assert await read(mobile, 12) == b"before after"


async def test_a_handover_lets_the_old_leg_deliver_what_was_sent_on_it(bench: Bench) -> None:
    old = await bench.attach(1)
    await write(old, b"up, old;")
    await write(bench.server, b"down, old;" * 1000)
    await eventually(lambda: bench.conduit.state().down_sent == 10_000)
    new = await bench.attach(2, upstream_from=15, handover=True)
    assert bench.down_from == 10_000
    await write(new, b"up, new")
    await write(bench.server, b"down, new")
    assert await read(new, 9) == b"down, new"
    assert await read(bench.server, 8) == b"up, old;"
    await write(old, b" to end")  # sent before the mobile said where its old leg ends, and late
    assert await read(bench.server, 14) == b" to endup, new"
    assert await read(old, 10_000) == b"down, old;" * 1000
    assert await read(old, 1) == b""  # closed in order, not reset
    assert bench.owner.legs_ended == []


async def test_a_handover_that_breaks_off_loses_the_new_leg_and_no_byte(bench: Bench) -> None:
    old = await bench.attach(1)
    await write(old, b"0123")
    assert await read(bench.server, 4) == b"0123"
    new = await bench.attach(2, upstream_from=10, handover=True)
    await write(new, b"abc")
    old.close()  # with bytes 4 to 9 unsent
    await eventually(lambda: bench.owner.legs_ended == [(2, LegEnd.RESET)])
    again = await bench.attach(3, upstream_from=4)
    await write(again, b"456789abc")
    assert await read(bench.server, 9) == b"456789abc"
    with pytest.raises(ConnectionResetError):
        await read(new, 1)


@pytest.mark.parametrize("offset", [-1, 1])
async def test_offsets_outside_what_is_there_are_refused(bench: Bench, offset: int) -> None:
    await bench.attach(1)
    bench.mobiles += (pair := await tcp_pair())
    leg = pair[1]
    with pytest.raises(ValueError, match="retained"):
        bench.conduit.attach(Attachment(leg, 2, REPLY, bench.conduit.state().down_available + offset, 0))


async def test_the_state_tells_what_is_on_the_way(bench: Bench) -> None:
    await bench.attach(1)
    assert bench.conduit.state() == StreamState(
        up_taken=0, up_fin=None, down_acknowledged=0, down_sent=0, down_available=0, down_fin=None
    )


async def test_megabytes_both_ways_over_many_legs(bench: Bench) -> None:
    chance = random.Random(7)
    size = 8_000_000
    upstream, downstream = chance.randbytes(size), chance.randbytes(size)
    sender = asyncio.create_task(write(bench.server, downstream))
    receiver = asyncio.create_task(read(bench.server, size))
    got, generation = bytearray(), 0
    while len(got) < size or bench.conduit.state().up_taken < size:
        generation += 1
        taken = bench.conduit.state().up_taken
        mobile = await bench.attach(generation, received=len(got), upstream_from=taken)
        await asyncio.gather(
            write(mobile, upstream[taken : taken + 700_000]),
            read_into(got, mobile, min(size, len(got) + 700_000)),
        )
        # All that this leg's kernel has ACKed must be read before the next leg, which begins at D.
        bench.conduit.stop_leg()
        await read_into(got, mobile, bench.conduit.state().down_acknowledged)
    assert hashlib.sha256(got).digest() == hashlib.sha256(downstream).digest()
    await sender
    assert hashlib.sha256(await receiver).digest() == hashlib.sha256(upstream).digest()
    assert bench.owner.lost == []
