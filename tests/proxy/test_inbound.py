"""Listeners of mobile nodes, asked for on a control channel; a peer's connection is a session that a leg takes."""

from __future__ import annotations

import socket

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy
from tests.proxy.mobile_node import Channel, Leg, MobileNode, read_exactly, receive, send
from tests.proxy.test_bind import call, is_reset, refuses

from msocks.protocol.control import SessionEnded
from msocks.protocol.inbound import Incoming, Listen, Listening, ListenStatus, Unlisten
from msocks.protocol.leg import LegStatus
from msocks.values.endpoint import Endpoint


def free_port() -> int:
    with socket.create_server(("", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def listening(channel: Channel, message: Listen) -> Endpoint:
    await channel.say(message)
    answer = await channel.hear(Listening)
    assert (answer.number, answer.status) == (message.number, ListenStatus.OPEN)
    assert answer.bound is not None
    return answer.bound


async def take(node: MobileNode, incoming: Incoming) -> Leg:
    leg = await node.reconnect(incoming.session, 1, 0, 0)
    assert ((await leg.reply()).status, leg.verified) == (LegStatus.OK, True)
    return leg


@pytest.fixture
async def published(start_proxy: StartProxy) -> tuple[RunningProxy, MobileNode, Endpoint]:
    """A mobile node that has published a port."""
    port = free_port()
    proxy = await start_proxy(publish={"alice": ((port, port),)})
    node = await proxy.node()
    return proxy, node, await listening(node.channels[0], Listen(1, port))


async def test_a_peer_is_announced_taken_and_carried_on(published: tuple[RunningProxy, MobileNode, Endpoint]):
    _, node, bound = published
    with await call(bound) as peer:
        await send(peer, b"first, ")  # before any leg stands
        incoming = await node.channels[0].hear(Incoming)
        assert incoming.peer == Endpoint.from_sockaddr(peer.getsockname())
        leg = await take(node, incoming)
        assert await read_exactly(leg.sock, 7) == b"first, "
        await send(leg.sock, b"answer")
        assert await read_exactly(peer, 6) == b"answer"
        moved = await node.reconnect(incoming.session, 2, 7, 6)
        assert (await moved.reply()).status is LegStatus.OK
        await send(peer, b"second")
        assert await read_exactly(moved.sock, 6) == b"second"


async def test_a_once_listener_closes_behind_its_peer(proxy: RunningProxy):
    node = await proxy.node()
    bound = await listening(node.channels[0], Listen(1, once=True))
    with await call(bound):
        await take(node, await node.channels[0].hear(Incoming))
        assert await refuses(bound)


async def test_a_new_channel_is_told_what_waits(published: tuple[RunningProxy, MobileNode, Endpoint]):
    _, node, bound = published
    with await call(bound):
        first = await node.channels[0].hear(Incoming)
        node.channels[0].close()
        channel = await node.associate()
        assert await channel.hear(Incoming) == first
        await take(node, first)


async def test_whom_nobody_takes_is_reset(start_proxy: StartProxy):
    proxy = await start_proxy(take_timeout_s=0.2)
    node = await proxy.node()
    bound = await listening(node.channels[0], Listen(1, once=True))
    with await call(bound) as peer:
        incoming = await node.channels[0].hear(Incoming)
        with pytest.raises(ConnectionResetError):
            await receive(peer)
        assert (await node.channels[0].hear(SessionEnded)).session == incoming.session


async def test_unlisten_gives_the_port_back(published: tuple[RunningProxy, MobileNode, Endpoint]):
    _, node, bound = published
    with await call(bound) as peer:
        await node.channels[0].hear(Incoming)
        await node.channels[0].say(Unlisten(1))
        with pytest.raises(ConnectionResetError):
            await receive(peer)
    assert await refuses(bound)


async def test_who_may_publish_what_is_the_operators_rule(published: tuple[RunningProxy, MobileNode, Endpoint]):
    proxy, node, bound = published
    bob = await proxy.node("bob")
    for whose, port, status in (
        (node, free_port(), ListenStatus.NOT_ALLOWED),
        (node, bound.port, ListenStatus.IN_USE),
        (bob, bound.port, ListenStatus.NOT_ALLOWED),
        (bob, 0, ListenStatus.NOT_ALLOWED),
    ):
        await whose.channels[0].say(Listen(2, port))
        answer = await whose.channels[0].hear(Listening)
        assert (answer.status, answer.bound) == (status, None)
        assert answer.text


async def test_a_client_that_is_gone_leaves_its_port_to_the_next(published: tuple[RunningProxy, MobileNode, Endpoint]):
    proxy, node, bound = published
    node.channels[0].close()
    again = await proxy.node(link=node.link)
    assert await listening(again.channels[0], Listen(1, bound.port)) == bound
    with await call(bound):
        await take(again, await again.channels[0].hear(Incoming))


async def test_a_proxy_without_room_for_the_session_resets_the_peer(start_proxy: StartProxy):
    proxy = await start_proxy()
    node = await proxy.node(link=await proxy.add_user("alice", max_sessions=1))
    first, second = [await listening(node.channels[0], Listen(number, once=True)) for number in (1, 2)]
    with await call(first):
        await node.channels[0].hear(Incoming)
        assert await is_reset(second)
