"""Where a leg begins, and when the proxy is asked for that."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from msocks.client.upstream_position import UpstreamPosition
from msocks.protocol.leg import LegCommand
from msocks.protocol.leg_request_codec import REQUEST_BYTES
from msocks.transport.kernel import tcp_info
from msocks.transport.leg_stream import LegStream
from msocks.values.ids import SessionId

SESSION = SessionId(b"s" * 16)


class Stream:
    """A stream of which `sent` bytes were sent and `base` are known to have arrived."""

    def __init__(self, base: int, sent: int) -> None:
        self.base, self.sent = base, sent

    acks_tell = True

    def acknowledged(self) -> int:
        return self.base

    def freeze(self) -> int:
        return self.base


class Way:
    """Dials to a socket pair as soon as it may; notes what was asked."""

    def __init__(self, can_ask: bool = True) -> None:
        self.asked: list[tuple[str, SessionId]] = []
        self.dials = asyncio.Event()
        self.can_ask = can_ask
        self.ends: list[socket.socket] = []
        self.dialled = asyncio.Event()

    def ask_position(self, link: str, session: SessionId) -> float | None:
        self.asked.append((link, session))
        return 0.05 if self.can_ask else None

    async def dial(self, link: str) -> socket.socket:
        await self.dials.wait()
        ours, theirs = socket.socketpair()
        self.ends = [ours, theirs]
        self.dialled.set()
        return ours

    def close(self) -> None:
        for end in self.ends:
            end.close()


async def dial(asked: UpstreamPosition, *, ask: bool) -> socket.socket:
    assert not asked.begins_on(None, ask=ask)
    return await asked.dial("lte", None)


def position(way: Way, base: int, sent: int) -> UpstreamPosition:
    return UpstreamPosition(way, SESSION, cast("LegStream", Stream(base, sent)))


async def test_a_leg_begins_with_what_has_not_arrived():
    way = Way()
    asked = position(way, 1_000, 101_000)
    dialling = asyncio.ensure_future(dial(asked, ask=True))
    await asyncio.sleep(0)
    asked.told(90_000)
    way.dials.set()
    await dialling
    assert way.asked == [("lte", SESSION)]
    assert asked.beginning() == 90_000
    way.close()


async def test_an_answer_that_comes_after_the_handshake_counts():
    way = Way()
    way.dials.set()
    asked = position(way, 1_000, 101_000)
    asyncio.get_running_loop().call_later(0.005, asked.told, 90_000)
    await dial(asked, ask=True)
    assert asked.beginning() == 90_000
    way.close()


async def test_without_an_answer_it_begins_where_the_acks_ended():
    way = Way()
    way.dials.set()
    asked = position(way, 1_000, 101_000)
    began = asyncio.get_running_loop().time()
    await dial(asked, ask=True)
    assert asyncio.get_running_loop().time() - began < 0.2
    assert asked.beginning() == 1_000
    asked.told(90_000)  # too late
    way.close()


@pytest.mark.parametrize(("told", "begins"), [(500, 1_000), (200_000, 101_000)])
async def test_nonsense_moves_nothing_but_within_what_was_sent(told: int, begins: int):
    way = Way()
    way.dials.set()
    asked = position(way, 1_000, 101_000)
    asyncio.get_running_loop().call_soon(asked.told, told)
    await dial(asked, ask=True)
    assert asked.beginning() == begins
    way.close()


@pytest.mark.parametrize(
    ("sent", "ask", "can_ask"), [(9_000, True, True), (101_000, False, True), (101_000, True, False)]
)
async def test_nobody_waits_for_an_answer_that_is_not_worth_it_or_will_not_come(sent: int, ask: bool, can_ask: bool):
    way = Way(can_ask)
    way.dials.set()
    asked = position(way, 1_000, sent)
    await dial(asked, ask=ask)
    asked.told(5_000)
    assert asked.beginning() == 1_000
    assert bool(way.asked) is (ask and sent > 20_000)
    way.close()


@pytest.mark.parametrize(("sent", "ask"), [(9_000, True), (101_000, False)])
def test_on_a_spare_a_leg_begins_at_once_where_there_is_little_to_be_known(sent: int, ask: bool):
    way = Way()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        asked = position(way, 1_000, sent)
        assert asked.begins_on(ours, ask=ask)
        assert asked.beginning() == 1_000
    assert way.asked == []


@pytest.fixture
def connections() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A leg over which bytes were sent and ACKed, and one that is new."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        legs = []
        for _ in range(2):
            legs.append(stack.enter_context(socket.create_connection(listener.getsockname())))
            stack.enter_context(listener.accept()[0])
        legs[0].sendall(bytes(100_000))
        yield legs[0], legs[1]


async def test_over_a_spare_a_leg_begins_with_what_has_probably_not_arrived(
    connections: tuple[socket.socket, socket.socket],
):
    lost, spare = connections
    way = Way()
    asked = position(way, 1_000_000, 30_000_000)
    asked.leg_lost(lost)
    before, fresh = tcp_info(lost), tcp_info(spare)
    assert asked.begins_on(spare, ask=True)
    assert await asked.dial("lte", spare) is spare  # where that is not done at once
    assert way.asked == []
    flight = asked.flight
    assert flight is not None
    assert flight.length + REQUEST_BYTES[LegCommand.RECONNECT] == fresh.segment_bytes * fresh.window_segments
    arrived = before.delivered_per_s * (0.5 * before.rtt_least_ms / 1000)
    assert arrived > 0
    assert flight.begins_at == asked.beginning() == 1_000_000 + int(arrived)
    # The next one has nothing to go by.
    asked.told(5)
    assert not asked.begins_on(spare, ask=True)
    assert asked.flight is None
    assert await asked.dial("lte", spare) is spare
    assert way.asked == [("lte", SESSION)]


async def test_where_acks_tell_nothing_the_proxy_is_asked_though_there_is_a_spare(
    connections: tuple[socket.socket, socket.socket],
):
    lost, spare = connections
    way = Way()
    stream = Stream(1_000_000, 30_000_000)
    stream.acks_tell = False
    asked = UpstreamPosition(way, SESSION, cast("LegStream", stream))
    asked.leg_lost(lost)
    assert not asked.begins_on(spare, ask=True)
    asyncio.get_running_loop().call_later(0.005, asked.told, 2_000_000)
    assert await asked.dial("lte", spare) is spare
    assert asked.flight is None
    assert asked.beginning() == 2_000_000


async def test_the_connection_is_closed_when_nobody_wants_it_any_more():
    way = Way()
    way.dials.set()
    asked = position(way, 1_000, 101_000)
    dialling = asyncio.ensure_future(dial(asked, ask=True))
    await way.dialled.wait()
    await asyncio.sleep(0)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    assert way.ends[0].fileno() == -1
    way.close()
