"""Path probes over UDP."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy
from tests.proxy.mobile_node import MobileNode, reset, send, server_on

from msocks.protocol.probe import (
    PROBE_BYTES,
    Position,
    PositionQuery,
    Probe,
    ProbeAnswer,
    decode_probe,
    encode_probe,
    probe_key,
)
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId


async def exchange(node: MobileNode, datagram: bytes, to: str | None = None) -> tuple[bytes, tuple, tuple]:
    """Send a datagram; returns the answer, where it came from, and where it went."""
    host = to or str(node.proxy.host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(datagram, (host, node.proxy.port))
        loop = asyncio.get_running_loop()
        answer, source = await asyncio.wait_for(loop.sock_recvfrom(sock, 2048), 0.3)
        return answer, source, sock.getsockname()


def probe(node: MobileNode, sequence: int = 1) -> bytes:
    return encode_probe(Probe(node.association, sequence, 1234), probe_key(node.keys.key_up))


async def test_a_probe_is_answered_with_what_the_proxy_sees(proxy: RunningProxy):
    node = await proxy.node()
    answer, _, local = await exchange(node, probe(node, 5))
    signed = decode_probe(answer)
    assert len(answer) == PROBE_BYTES
    assert signed.verify(probe_key(node.keys.key_down))
    assert isinstance(signed.message, ProbeAnswer)
    assert signed.message.sequence == 5
    assert 1234 <= signed.message.time < 51_234  # how long the proxy had it is added, in microseconds
    assert signed.message.observed == Endpoint.of("127.0.0.1", local[1])


def keep_busy(seconds: float) -> None:
    """The test's thread, and with it the proxy, which runs in its event loop."""
    time.sleep(seconds)


async def test_a_proxy_that_is_busy_tells_how_long_it_had_a_probe(proxy: RunningProxy):
    node = await proxy.node()
    had_us = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        for busy_s in (0.0, 0.1):
            sock.sendto(probe(node), (str(node.proxy.host), node.proxy.port))
            keep_busy(busy_s)
            received = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 2048), 1)
            answer = decode_probe(received).message
            assert isinstance(answer, ProbeAnswer)
            had_us.append(answer.time - 1234)
    assert 0 <= had_us[0] < 50_000
    assert 100_000 <= had_us[1] < 150_000


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.77"])
async def test_a_wildcard_listener_answers_from_the_address_that_was_asked(
    start_proxy: StartProxy, listen: str, address: str
):
    proxy = await start_proxy(listen=(Endpoint.parse(listen),))
    node = MobileNode(Endpoint.of(address, proxy.endpoint.port), await proxy.add_user("alice"))
    proxy.nodes.append(node)
    await node.associate()
    _, source, _ = await exchange(node, probe(node))
    assert source == (address, proxy.endpoint.port)


async def test_ipv6_probes_are_answered(start_proxy: StartProxy):
    proxy = await start_proxy(listen=(Endpoint.parse("[::1]:0"),))
    node = await proxy.node()
    answer, source, local = await exchange(node, probe(node))
    message = decode_probe(answer).message
    assert isinstance(message, ProbeAnswer)
    assert source[:2] == ("::1", proxy.endpoint.port)
    assert message.observed == Endpoint.of("::1", local[1])


def position_query(node: MobileNode, session: SessionId) -> bytes:
    return encode_probe(PositionQuery(node.association, 7, session), probe_key(node.keys.key_up))


async def test_a_client_is_told_how_far_a_sessions_upstream_has_come(proxy: RunningProxy):
    node = await proxy.node()
    async with server_on() as server:
        session, leg = await node.open_session(server.endpoint)
        await server.accept()
        await send(leg.sock, b"a" * 1000)
        for _ in range(50):
            answer, _, _ = await exchange(node, position_query(node, session))
            signed = decode_probe(answer)
            assert signed.verify(probe_key(node.keys.key_down))
            assert isinstance(signed.message, Position)
            if signed.message.received == 1000:
                break
            await asyncio.sleep(0.01)
        assert signed.message == Position(node.association, 7, session, 1000)
        reset(leg.sock)  # the session waits for a leg now
        await asyncio.sleep(0.05)
        answer, _, _ = await exchange(node, position_query(node, session))
        assert decode_probe(answer).message == Position(node.association, 7, session, 1000)


async def test_nobody_is_told_of_sessions_that_are_not_his(proxy: RunningProxy):
    node, other = await proxy.node(), await proxy.node("bob")
    async with server_on() as server:
        session, _ = await node.open_session(server.endpoint)
        for asking, about in ((other, session), (node, SessionId.generate())):
            with pytest.raises(TimeoutError):
                await exchange(asking, position_query(asking, about))
        await exchange(node, position_query(node, session))


@pytest.mark.parametrize("damage", ["short", "long", "mac", "association", "answer", "empty"])
async def test_what_is_no_probe_of_a_live_association_gets_no_answer(proxy: RunningProxy, damage: str):
    node = await proxy.node()
    good = probe(node)
    key = probe_key(node.keys.key_up)
    datagram = {
        "short": good[:-1],
        "long": good + b"\0",
        "mac": good[:-1] + bytes((good[-1] ^ 1,)),
        "association": encode_probe(Probe(AssociationId.generate(), 1, 1), key),
        "answer": encode_probe(ProbeAnswer(node.association, 1, 1, node.proxy), key),
        "empty": b"",
    }[damage]
    with pytest.raises(TimeoutError):
        await exchange(node, datagram)
    await exchange(node, good)
