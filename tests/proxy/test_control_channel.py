"""The control channel: who gets in, what is told, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy
from tests.proxy.mobile_node import Channel, MobileNode, Server, dial, reset, send

from msocks.errors import PinMismatch, ProtocolError
from msocks.protocol.control import Goodbye, Hello, Ping, Pong, RefusalCode, Refused, Welcome
from msocks.protocol.leg import LegStatus
from msocks.proxy.config import ProxyLimits
from msocks.transport.tls import client_context
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId


async def refusal(node: MobileNode, **changes) -> RefusalCode:
    channel = await node.open_channel(**changes)
    code = (await channel.hear(Refused)).code
    with pytest.raises(EOFError):
        await channel.hear(Welcome)
    return code


async def test_welcome_tells_what_the_client_needs(start_proxy: StartProxy):
    proxy = await start_proxy(detach_grace_s=7200)
    node = await proxy.node()
    welcome = node.keys
    assert welcome.association == node.association
    assert welcome.detach_grace_s == 7200
    assert welcome.max_sessions == 2000
    assert welcome.observed == Endpoint.from_sockaddr(node.channels[0].sock.getsockname())
    assert abs(welcome.proxy_ms - time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) < 5000


async def test_channels_of_one_association_share_its_keys(proxy: RunningProxy):
    node = await proxy.node()
    first = node.keys
    await node.associate()
    assert (node.keys.key_up, node.keys.key_down) == (first.key_up, first.key_down)
    other = MobileNode(proxy.endpoint, node.link)
    proxy.nodes.append(other)
    await other.associate()
    assert other.keys.key_up != first.key_up


async def test_an_association_outlives_its_channels(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    reset(node.channels[0].sock)
    await asyncio.sleep(0.05)
    session, _ = await node.open_session(server.endpoint)
    assert (await node.query(session)).status is LegStatus.OK


async def test_an_association_without_channels_is_forgotten_after_the_grace(start_proxy: StartProxy):
    proxy = await start_proxy(detach_grace_s=0.1)
    node = await proxy.node()
    node.channels[0].close()
    await asyncio.sleep(0.3)
    assert (await node.query(SessionId.generate())).status is LegStatus.UNKNOWN_ASSOCIATION


async def test_an_association_whose_channel_comes_back_is_not_forgotten(start_proxy: StartProxy):
    proxy = await start_proxy(detach_grace_s=0.3)
    node = await proxy.node()
    node.channels[0].close()
    await asyncio.sleep(0.05)
    await node.associate()
    await asyncio.sleep(0.5)
    assert (await node.query(SessionId.generate())).status is LegStatus.UNKNOWN_SESSION


async def test_a_wrong_secret_and_an_unknown_user_are_refused_alike(proxy: RunningProxy):
    node = await proxy.node()
    before = asyncio.get_running_loop().time()
    assert await refusal(node, secret=bytes(32)) is RefusalCode.AUTHENTICATION
    assert await refusal(node, user="nobody") is RefusalCode.AUTHENTICATION
    assert asyncio.get_running_loop().time() - before > 0.5  # each takes a while
    assert len(proxy.events("hello_refused")) == 2


async def test_who_fails_too_often_is_refused_unseen_for_a_while(proxy: RunningProxy):
    node = await proxy.node()
    await asyncio.gather(*(refusal(node, secret=bytes(32)) for _ in range(20)))
    assert await refusal(node) is RefusalCode.AUTHENTICATION


async def test_an_association_of_another_user_is_not_shared(proxy: RunningProxy):
    alice, bob = await proxy.node("alice"), await proxy.node("bob")
    assert await refusal(bob, association=alice.association) is RefusalCode.ASSOCIATION_TAKEN


async def test_the_channels_of_a_user_are_limited(proxy: RunningProxy):
    link = await proxy.add_user("alice", max_channels=2)
    node = await proxy.node(link=link)
    await node.associate()
    assert await refusal(node) is RefusalCode.LIMIT
    node.channels[0].close()
    await asyncio.sleep(0.05)
    await node.associate()


async def test_the_oldest_idle_association_makes_room(start_proxy: StartProxy):
    proxy = await start_proxy(limits=ProxyLimits(associations_per_user=2))
    idle = await proxy.node()
    busy = await proxy.node(link=idle.link)
    idle.channels[0].close()
    await asyncio.sleep(0.05)
    newest = await proxy.node(link=idle.link)
    assert (await busy.query(SessionId.generate())).status is LegStatus.UNKNOWN_SESSION
    assert (await newest.query(SessionId.generate())).status is LegStatus.UNKNOWN_SESSION
    assert (await idle.query(SessionId.generate())).status is LegStatus.UNKNOWN_ASSOCIATION
    assert await refusal(newest, association=AssociationId.generate()) is RefusalCode.LIMIT


async def test_a_ping_is_answered(proxy: RunningProxy):
    node = await proxy.node()
    await node.channels[0].say(Ping(7, 99))
    assert await node.channels[0].hear(Pong) == Pong(7, 99)


async def test_a_silent_channel_is_asked_and_then_closed(start_proxy: StartProxy):
    proxy = await start_proxy(channel_idle_s=0.4)
    node = await proxy.node()
    channel = node.channels[0]
    ping = await channel.hear(Ping)
    await channel.say(Pong(ping.nonce, ping.time))
    await channel.hear(Ping)
    with pytest.raises(EOFError):
        await channel.hear(Goodbye)


async def test_goodbye_closes_the_channel_and_leaves_the_session(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, _ = await node.open_session(server.endpoint)
    await node.channels[0].say(Goodbye())
    with pytest.raises(EOFError):
        await node.channels[0].hear(Welcome)
    assert (await node.query(session)).status is LegStatus.OK


async def test_a_client_that_reads_nothing_is_let_go(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    channel = await node.associate()
    ping = b"".join(channel.machine.send(Ping(n, n)) for n in range(500))
    while not proxy.events("channel_too_slow"):
        channel.tls.send(ping)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await send(channel.sock, channel.tls.outgoing())
    session, _ = await node.open_session(server.endpoint)
    assert (await node.query(session)).status is LegStatus.OK


async def test_the_pin_is_that_of_the_proxys_key(proxy: RunningProxy):
    node = await proxy.node()
    channel = Channel(await dial(proxy.endpoint), bytes(32))
    node.channels.append(channel)
    with pytest.raises(PinMismatch):
        await channel.open(node.hello())


async def test_tls_1_2_is_not_spoken(proxy: RunningProxy):
    context = client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    node = await proxy.node()
    channel = Channel(await dial(proxy.endpoint), node.link.pin)
    node.channels.append(channel)
    channel.tls = type(channel.tls)(context, pin=node.link.pin)
    with pytest.raises(ProtocolError):
        await channel.open(node.hello())


async def test_a_later_version_of_the_protocol_is_refused_as_such(proxy: RunningProxy):
    node = await proxy.node()
    hello: Hello = node.hello(version=2)
    channel = Channel(await dial(proxy.endpoint), node.link.pin)
    node.channels.append(channel)
    await channel.open(hello)
    assert (await channel.hear(Refused)).code is RefusalCode.VERSION
