"""What strangers, liars and broken clients send: refused clearly, and nothing of anybody else's is disturbed."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy, eventually
from tests.proxy.mobile_node import Leg, MobileNode, Server, dial, read_all, read_exactly, receive, reset, send

from msocks.errors import EndReason
from msocks.protocol.control import SessionEnded
from msocks.protocol.leg import LegReply, LegStatus, Query
from msocks.protocol.leg_reply_codec import REPLY_BYTES
from msocks.protocol.leg_request_codec import encode_request
from msocks.values.ids import SessionId


@dataclass
class Live:
    """A session that lives through everything that the test does beside it."""

    node: MobileNode
    session: SessionId
    leg: Leg
    remote: socket.socket

    async def still_works(self) -> None:
        await send(self.remote, b"down")
        assert await read_exactly(self.leg.sock, 4) == b"down"
        await send(self.leg.sock, b"up")
        assert await read_exactly(self.remote, 2) == b"up"
        assert (await self.node.query(self.session)).generation == 1


@pytest.fixture
async def live(proxy: RunningProxy, server: Server) -> AsyncIterator[Live]:
    node = await proxy.node("alice")
    session, leg = await node.open_session(server.endpoint)
    made = Live(node, session, leg, await server.accept())
    yield made
    await made.still_works()


async def outcome(leg: Leg) -> tuple[LegStatus, bool]:
    reply: LegReply = await leg.reply()
    # Nothing follows a refusal, and the proxy closes at once.
    assert await asyncio.wait_for(receive(leg.sock), 1) == b""
    return reply.status, leg.verified


async def test_a_forged_mac_is_refused_without_a_mac(live: Live):
    assert await outcome(await live.node.reconnect(live.session, 2, 0, 0, key_up=bytes(32))) == (
        LegStatus.BAD_MAC,
        False,
    )


async def test_an_expired_request_is_refused_with_the_proxys_clock(live: Live):
    leg = await live.node.reconnect(live.session, 2, 0, 0, expires_ms=live.node.keys.proxy_ms - 1)
    reply = await leg.reply()
    assert (reply.status, leg.verified) == (LegStatus.EXPIRED, True)
    assert reply.proxy_ms >= live.node.keys.proxy_ms


async def test_a_replayed_request_is_refused(live: Live):
    request = Query(**live.node.fields(live.session, 0))
    assert (await (await live.node.ask(request)).reply()).status is LegStatus.OK
    assert await outcome(await live.node.ask(request)) == (LegStatus.REPLAYED, True)


async def test_a_request_that_was_refused_as_forged_does_not_use_up_its_number(live: Live):
    fields = live.node.fields(live.session, 0)
    assert await outcome(await live.node.ask(Query(**fields), key_up=bytes(32))) == (LegStatus.BAD_MAC, False)
    assert (await (await live.node.ask(Query(**fields))).reply()).status is LegStatus.OK


async def test_another_users_session_is_answered_like_one_that_never_was(proxy: RunningProxy, live: Live):
    mallory = await proxy.node("mallory")
    never = SessionId.generate()
    for session in (live.session, never):
        assert await outcome(await mallory.reconnect(session, 2, 0, 0)) == (LegStatus.UNKNOWN_SESSION, True)
        assert (await mallory.query(session)).status is LegStatus.UNKNOWN_SESSION
        assert (await mallory.close_session(session, 9)).status is LegStatus.UNKNOWN_SESSION


async def test_two_users_may_choose_the_same_id(proxy: RunningProxy, live: Live, server: Server):
    bob = await proxy.node("bob")
    leg = await bob.connect(live.session, server.endpoint)
    assert (await leg.reply()).status is LegStatus.OK
    await server.accept()
    assert (await bob.close_session(live.session, 1)).status is LegStatus.OK


@pytest.mark.parametrize("cut", [1, 2, 3, 20, 90])
async def test_a_leg_that_stops_half_way_is_closed_at_the_deadline(start_proxy: StartProxy, cut: int):
    proxy = await start_proxy(handshake_timeout_s=0.2)
    node = await proxy.node()
    request = encode_request(Query(**node.fields(SessionId.generate(), 0)), node.keys.key_up)
    sock = await dial(proxy.endpoint)
    await send(sock, request[:cut])
    assert await receive(sock) == b""
    sock.close()


async def test_a_request_that_comes_byte_by_byte_is_understood(live: Live):
    request = encode_request(Query(**live.node.fields(live.session, 0)), live.node.keys.key_up)
    sock = await dial(live.node.proxy)
    for byte in request:
        await send(sock, bytes((byte,)))
        await asyncio.sleep(0)
    assert len(await read_exactly(sock, REPLY_BYTES)) == REPLY_BYTES
    sock.close()


async def test_a_leg_reset_in_the_middle_of_its_request_harms_nobody(live: Live):
    request = encode_request(Query(**live.node.fields(live.session, 0)), live.node.keys.key_up)
    for cut in (0, 1, 50):
        sock = await dial(live.node.proxy)
        await send(sock, request[:cut])
        reset(sock)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x05\x01\x8d" + bytes(300), id="version 0"),
        pytest.param(b"\x05\x01\x8d\x01\x77" + bytes(300), id="unknown command"),
        pytest.param(b"\x05\x01\x8d\x01\x82" + b"\xff" * 90, id="unknown flags"),
    ],
)
async def test_a_malformed_leg_is_told_so(live: Live, garbage: bytes):
    sock = await dial(live.node.proxy)
    await send(sock, garbage)
    answer = await read_all(sock)
    assert answer[3] == LegStatus.MALFORMED
    assert len(answer) == REPLY_BYTES
    assert answer[-32:] == bytes(32)
    sock.close()


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.0\r\n\r\n", b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"\x00"])
async def test_what_is_not_spoken_here_is_closed(live: Live, proxy: RunningProxy, greeting: bytes):
    sock = await dial(live.node.proxy)
    await send(sock, greeting)
    with pytest.raises((ConnectionResetError, EOFError)):
        await read_exactly(sock, 1)
    sock.close()
    assert proxy.events("greeting_unknown")


async def test_random_bytes_of_every_kind_are_survived(live: Live):
    dice = random.Random(11)
    beginnings = [
        b"",
        b"\x05",
        b"\x05\x01\x00",
        b"\x05\x01\x02\x01",
        b"\x05\x01\x8d",
        b"\x05\x01\x8d\x01\x81",
        b"\x16\x03\x01",
    ]
    for _ in range(300):
        sock = await dial(live.node.proxy)
        await send(sock, dice.choice(beginnings) + dice.randbytes(dice.randrange(1, 600)))
        if dice.random() < 0.5:
            reset(sock)
        else:
            sock.close()


async def test_garbage_in_tls_is_closed(live: Live, proxy: RunningProxy):
    sock = await dial(live.node.proxy)
    await send(sock, b"\x16\x03\x01\x00\x05hello")
    await read_all(sock)
    sock.close()
    assert proxy.events("channel_failed")


async def test_garbage_in_a_control_channel_closes_it_and_touches_no_session(live: Live):
    channel = await live.node.associate()
    channel.tls.send(b"\x00\x01\x01\x00")
    await send(channel.sock, channel.tls.outgoing())
    with pytest.raises(EOFError):
        await channel.hear(SessionEnded)


async def test_a_lost_connect_leg_goes_on_connecting(start_proxy: StartProxy, server: Server):
    """The leg dies while its CONNECT is under way; the session is there for the next one."""
    proxy = await start_proxy()
    node = await proxy.node()
    session = SessionId.generate()
    leg = await node.connect(session, server.endpoint)
    reset(leg.sock)
    remote = await server.accept()
    again = await node.connect(session, server.endpoint, generation=2)
    assert (await again.reply()).status is LegStatus.OK
    await send(remote, b"hello")
    assert await read_exactly(again.sock, 5) == b"hello"
    assert len(server.accepted) == 1


async def test_a_thousand_connections_that_never_speak_disturb_nobody(live: Live, proxy: RunningProxy):
    silent = [await dial(live.node.proxy) for _ in range(1000)]
    try:
        await live.still_works()
        stranger = await proxy.node("bob")
        assert (await stranger.query(SessionId.generate())).status is LegStatus.UNKNOWN_SESSION
        # Those of one source beyond the limit were closed, the oldest first.
        assert await receive(silent[0]) == b""
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)
    finally:
        for sock in silent:
            sock.close()


async def test_connections_that_never_speak_are_closed_at_the_deadline(start_proxy: StartProxy):
    proxy = await start_proxy(handshake_timeout_s=0.2)
    silent = [await dial(proxy.endpoint) for _ in range(50)]
    started = asyncio.get_running_loop().time()
    for sock in silent:
        assert await receive(sock) == b""
        sock.close()
    assert 0.1 < asyncio.get_running_loop().time() - started < 1


async def test_a_session_that_ends_while_a_leg_asks_is_told_the_truth(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    reset(leg.sock)
    await eventually(lambda: bool(proxy.events("session_parked")))
    again = await node.reconnect(session, 2, 0, 0)
    assert (await again.reply()).status is LegStatus.OK
    reset(remote)
    assert (await node.channels[0].hear(SessionEnded)).reason is EndReason.SERVER_RESET
