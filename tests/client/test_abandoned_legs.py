"""Legs that were given up before their answer was heard: no byte that their kernel has acknowledged is lost with them.

The connection is real, and so are its sockets; the test plays the proxy at their other ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from tests.client.played_proxy import Far, Node, living

from msocks.errors import LinkUnavailable, MsocksError
from msocks.protocol.leg import Reconnect
from msocks.transport.kernel import bytes_unacknowledged, deafen


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """One whose connection has had a leg, got a byte over it, and lost it."""
    async with living() as made:
        made.links("wifi", "lte")
        first, _ = await made.leg()
        first.accept(down_from=0, behind=b"a")
        await made.until_received(b"a")
        made.links()
        yield made


def hear_nothing(node: Node) -> None:
    """The loop does not get to what comes on the attempts, as when the news of the link comes first."""
    for attempt in node.connection._attempts.values():
        node.reactor.unwatch(attempt.sock.fileno())


async def that_moves(node: Node) -> tuple[Far, Far, Reconnect, asyncio.Future[None]]:
    """The leg that has brought a byte, the one to which it hands over and its request, and the move."""
    node.links("wifi", "lte")
    first, _ = await node.leg()
    first.accept(down_from=0, behind=b"a")
    await node.until_received(b"a")
    moving = asyncio.ensure_future(node.connection.move("lte"))
    second, request = await node.leg()
    assert isinstance(request, Reconnect)
    return first, second, request, moving


async def test_what_an_abandoned_leg_had_acknowledged_is_read_from_it(node: Node) -> None:
    node.links("lte")
    second, _ = await node.leg()
    hear_nothing(node)
    second.accept(down_from=1, behind=b"bcd")
    await asyncio.sleep(0.05)
    assert bytes_unacknowledged(second.sock) == 0, "the proxy counts these bytes as received"
    node.links()
    node.links("wifi")
    third, request = await node.leg()
    assert isinstance(request, Reconnect)
    assert request.received == 4
    third.accept(down_from=4, behind=b"e")
    await node.until_received(b"abcde")
    assert node.carried == [1, request.generation]


async def test_an_abandoned_leg_acknowledges_nothing_any_more(node: Node) -> None:
    """The request may still be on its way, or be sent again when the link is back, and be accepted then."""
    node.links("lte")
    second, _ = await node.leg()
    node.links()
    node.links("wifi")
    third, request = await node.leg()
    assert isinstance(request, Reconnect)
    assert request.received == 1
    await asyncio.sleep(0.05)
    with pytest.raises(ConnectionResetError):
        second.accept(down_from=1, behind=b"bcd")
    third.accept(down_from=1, behind=b"bcde")
    await node.until_received(b"abcde")


async def test_one_to_which_another_leg_was_handing_over_is_taken_over_with_it() -> None:
    """What it has cannot be used before the bytes that were lost with the other leg: the proxy counts none of it."""
    async with living() as node:
        first, second, request, moving = await that_moves(node)
        assert request.handover_from == 1
        hear_nothing(node)
        first.sock.send(b"bc")
        second.accept(down_from=6, behind=b"gh")
        await node.until_received(b"abc")
        node.links("wifi")
        with pytest.raises(LinkUnavailable):
            await moving
        third, takeover = await node.leg()
        assert isinstance(takeover, Reconnect)
        assert (takeover.received, takeover.handover_from) == (3, 0)
        third.accept(down_from=3, behind=b"defghi")
        await node.until_received(b"abcdefghi")


async def test_a_close_names_the_leg_that_may_have_been_accepted() -> None:
    """A program resets while its session moves: with the generation of the leg that stands, CLOSE would be stale."""
    async with living() as node:
        _, _, request, moving = await that_moves(node)
        node.connection.abort()
        with pytest.raises(MsocksError):
            await moving
        assert node.closed == [request.generation] == [2]


async def test_a_deafened_connection_keeps_what_it_has_and_acknowledges_no_more(node: Node) -> None:
    near, far = await node.dial("lte"), node.far[-1].sock
    far.send(b"before")
    await asyncio.sleep(0.01)
    os.seteuid(65534)  # the agent has no privilege
    try:
        deafen(near)
    finally:
        os.seteuid(0)
    far.send(b"after")
    await asyncio.sleep(0.3)  # it is sent again meanwhile
    assert near.recv(100) == b"before"
    assert bytes_unacknowledged(far) == len(b"after")
    with pytest.raises(BlockingIOError):
        near.recv(100)
    near.close()


async def test_one_that_was_accepted_before_the_program_had_an_answer_waits_for_it() -> None:
    async with living() as node:
        node.links("wifi", "lte")
        first, _ = await node.leg()
        hear_nothing(node)
        first.accept(down_from=0, behind=b"banner")
        await asyncio.sleep(0.05)
        node.links("lte")
        second, _ = await node.leg()
        await asyncio.sleep(0.05)
        assert node.received == b"", "nobody has told the program that it is connected"
        second.accept(down_from=6, behind=b"more")
        await node.until_received(b"bannermore")
        assert node.carried == [2]
