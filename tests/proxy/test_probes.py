"""Path probes over UDP."""

from __future__ import annotations

import asyncio
import socket

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy
from tests.proxy.mobile_node import MobileNode

from msocks.protocol.probe import PROBE_BYTES, Probe, ProbeAnswer, decode_probe, encode_probe, probe_key
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId


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
    assert (signed.message.sequence, signed.message.time) == (5, 1234)
    assert signed.message.observed == Endpoint.of("127.0.0.1", local[1])


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
