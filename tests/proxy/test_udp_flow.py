"""UDP flows of mobile nodes at the proxy: paths that change, and datagrams that are not the node's."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy, eventually
from tests.proxy.mobile_node import MobileNode
from tests.proxy.udp_server import UdpServer

from msocks.protocol.udp_flow import (
    Attach,
    Detach,
    Down,
    FlowStatus,
    State,
    UdpFlowMessage,
    Up,
    decode_udp_flow,
    encode_udp_flow,
    udp_flow_key,
)
from msocks.proxy.config import ProxyLimits
from msocks.store.administration import remove_user
from msocks.store.running_proxy import udp_associations
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId

PATIENCE_S = 3.0
QUIET_S = 0.06


@dataclass
class Path:
    """One of the node's ways to the proxy: a socket of its own."""

    node: MobileNode
    sock: socket.socket

    def send_raw(self, datagram: bytes) -> None:
        self.sock.sendto(datagram, (str(self.node.proxy.host), self.node.proxy.port))

    def send(self, message: UdpFlowMessage) -> bytes:
        datagram = encode_udp_flow(message, udp_flow_key(self.node.keys.key_up))
        self.send_raw(datagram)
        return datagram

    async def receive(self, within_s: float = PATIENCE_S) -> UdpFlowMessage:
        loop = asyncio.get_running_loop()
        signed = decode_udp_flow(await asyncio.wait_for(loop.sock_recv(self.sock, 65536), within_s))
        assert signed.verify(udp_flow_key(self.node.keys.key_down))
        return signed.message

    async def down(self) -> tuple[Endpoint, bytes]:
        message = await self.receive()
        assert isinstance(message, Down)
        return message.source, message.payload

    async def is_quiet(self) -> bool:
        try:
            await self.receive(QUIET_S)
        except TimeoutError:
            return True
        return False


@dataclass
class Flow:
    """A UDP flow of a node; numbers count up by themselves."""

    node: MobileNode
    number: int = 1
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def attach(self, generation: int = 1) -> Attach:
        return Attach(self.node.association, self.number, generation, next(self.numbers))

    def up(self, destination: Endpoint, payload: bytes, generation: int = 1) -> Up:
        return Up(self.node.association, self.number, generation, next(self.numbers), destination, payload)

    async def opened(self, path: Path, generation: int = 1) -> None:
        attach = self.attach(generation)
        path.send(attach)
        assert await path.receive() == state_of(attach, FlowStatus.OPEN)


def state_of(message: Attach | Up | Detach, status: FlowStatus) -> State:
    return State(message.association, message.flow, message.generation, message.number, status)


@pytest.fixture
def new_path() -> Iterator[Callable[..., Path]]:
    with ExitStack() as stack:

        def make(node: MobileNode, host: str = "127.0.0.1") -> Path:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            sock.bind((host, 0))
            return Path(node, sock)

        yield make


NewPath = Callable[..., Path]


async def listed(proxy: RunningProxy) -> list[dict[str, Any]]:
    return await asyncio.to_thread(udp_associations, proxy.state)


# -- paths ----------------------------------------------------------------------------------------------------------


async def test_the_server_sees_one_address_while_paths_change(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node = await proxy.node()
    wifi, lte, flow = new_path(node), new_path(node, "127.0.0.5"), Flow(node)
    await flow.opened(wifi)
    wifi.send(flow.up(echo.endpoint, b"on wifi"))
    assert await wifi.down() == (echo.endpoint, b"on wifi")
    await flow.opened(lte, generation=2)
    lte.send(flow.up(echo.endpoint, b"on lte", 2))
    assert await lte.down() == (echo.endpoint, b"on lte")
    assert echo.received == [b"on wifi", b"on lte"]
    assert len(set(echo.sources)) == 1
    assert await wifi.is_quiet()
    (view,) = await listed(proxy)
    assert (view["mobile"], view["user"], view["paths"], view["port"]) == (True, "alice", 2, echo.sources[0][1])
    assert view["client"] == str(Endpoint.from_sockaddr(lte.sock.getsockname()))


async def test_who_only_listens_moves_by_attach_alone(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node = await proxy.node()
    wifi, lte, flow = new_path(node), new_path(node), Flow(node)
    await flow.opened(wifi)
    wifi.send(flow.up(echo.endpoint, b"subscribe"))
    await wifi.down()
    await flow.opened(lte, generation=2)
    echo.sock.sendto(b"news", echo.sources[0])
    assert await lte.down() == (echo.endpoint, b"news")


async def test_what_comes_late_over_the_old_path_is_delivered_and_turns_nothing_back(
    proxy: RunningProxy, echo: UdpServer, new_path: NewPath
):
    node = await proxy.node()
    wifi, lte, flow = new_path(node), new_path(node), Flow(node)
    await flow.opened(wifi)
    late = flow.up(echo.endpoint, b"late")
    await flow.opened(lte, generation=2)
    wifi.send(late)
    assert await lte.down() == (echo.endpoint, b"late")
    wifi.send(flow.up(echo.endpoint, b"later", generation=1))  # with a higher number, too
    assert await lte.down() == (echo.endpoint, b"later")
    assert await wifi.is_quiet()


async def test_a_nat_that_has_changed_its_mapping_is_followed(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node = await proxy.node()
    before, after, flow = new_path(node), new_path(node), Flow(node)
    await flow.opened(before)
    early = flow.up(echo.endpoint, b"overtaken")
    after.send(flow.up(echo.endpoint, b"from another port"))
    assert await after.down() == (echo.endpoint, b"from another port")
    before.send(early)
    assert await after.down() == (echo.endpoint, b"overtaken")


async def test_answers_come_from_the_address_that_was_asked_over_both_families(
    start_proxy: StartProxy, echo: UdpServer, new_path: NewPath
):
    proxy = await start_proxy(listen=(Endpoint.parse("[::]:0"),))
    node = await proxy.node()
    flow = Flow(node)
    for generation, host in enumerate(("127.0.0.77", "::1"), start=1):
        path = new_path(node, host)
        # A connected socket gets nothing from elsewhere.
        path.sock.connect((host, proxy.endpoint.port))
        for message in (flow.attach(generation), flow.up(echo.endpoint, host.encode(), generation)):
            path.sock.send(encode_udp_flow(message, udp_flow_key(node.keys.key_up)))
        assert isinstance(await path.receive(), State)
        assert await path.down() == (echo.endpoint, host.encode())
    assert len(set(echo.sources)) == 1


async def test_names_and_large_datagrams(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node = await proxy.node()
    path, flow = new_path(node), Flow(node)
    await flow.opened(path)
    path.send(flow.up(Endpoint("localhost", echo.endpoint.port), b"by name"))
    assert await path.down() == (echo.endpoint, b"by name")
    path.send(flow.up(echo.endpoint, bytes(60_000)))
    assert await path.down() == (echo.endpoint, bytes(60_000))
    # What a server sends may not fit any more; then it is counted.
    echo.sock.sendto(bytes(65_500), echo.sources[0])
    path.send(flow.up(echo.endpoint, b"goes on"))
    assert await path.down() == (echo.endpoint, b"goes on")
    (view,) = await listed(proxy)
    assert {cause: count for cause, count in view["dropped"].items() if count} == {"to_client": 1}


# -- what is not the node's -----------------------------------------------------------------------------------------


async def test_what_was_recorded_is_not_taken_twice(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node = await proxy.node()
    path, thief, flow = new_path(node), new_path(node, "127.0.0.66"), Flow(node)
    attach = flow.attach()
    recorded = [path.send(attach), path.send(flow.up(echo.endpoint, b"once"))]
    assert await path.receive() == state_of(attach, FlowStatus.OPEN)
    assert await path.down() == (echo.endpoint, b"once")
    for datagram in recorded:
        thief.send_raw(datagram)
    assert await thief.is_quiet()
    path.send(flow.up(echo.endpoint, b"mine"))
    assert await path.down() == (echo.endpoint, b"mine")
    assert echo.received == [b"once", b"mine"]
    (view,) = await listed(proxy)
    assert view["dropped"]["replayed"] == 2
    assert view["client"] == str(Endpoint.from_sockaddr(path.sock.getsockname()))


async def test_a_flow_that_has_ended_cannot_be_opened_by_what_was_recorded(
    proxy: RunningProxy, echo: UdpServer, new_path: NewPath
):
    node = await proxy.node()
    path, thief, flow = new_path(node), new_path(node), Flow(node)
    attach = flow.attach()
    recorded = [path.send(attach), path.send(flow.up(echo.endpoint, b"once"))]
    await path.receive()
    await path.down()
    detach = Detach(node.association, flow.number, 1, next(flow.numbers))
    path.send(detach)
    assert await path.receive() == state_of(detach, FlowStatus.ENDED)
    assert await listed(proxy) == []
    for datagram in recorded:
        thief.send_raw(datagram)
        state = await thief.receive()
        assert isinstance(state, State)
        assert state.status is FlowStatus.ENDED
    assert await listed(proxy) == []
    assert echo.received == [b"once"]


@pytest.mark.parametrize("forgery", ["mac", "down key", "leg key", "another's key", "unknown", "truncated", "state"])
async def test_what_is_forged_moves_nothing_and_gets_no_answer(
    proxy: RunningProxy, echo: UdpServer, new_path: NewPath, forgery: str
):
    node, other = await proxy.node(), await proxy.node("mallory")
    path, thief, flow = new_path(node), new_path(node), Flow(node)
    await flow.opened(path)
    message = flow.up(echo.endpoint, b"forged", generation=9)
    key = udp_flow_key(node.keys.key_up)
    good = encode_udp_flow(message, key)
    down_key = udp_flow_key(node.keys.key_down)
    thief.send_raw(
        {
            "mac": good[:-1] + bytes((good[-1] ^ 1,)),
            "down key": encode_udp_flow(message, down_key),
            "leg key": encode_udp_flow(message, node.keys.key_up),
            "another's key": encode_udp_flow(message, udp_flow_key(other.keys.key_up)),
            "unknown": encode_udp_flow(replace(message, association=AssociationId.generate()), key),
            "truncated": good[:-1],
            "state": encode_udp_flow(State(node.association, 1, 9, 9, FlowStatus.ENDED), key),
        }[forgery]
    )
    assert await thief.is_quiet()
    path.send(flow.up(echo.endpoint, b"mine"))
    assert await path.down() == (echo.endpoint, b"mine")
    assert echo.received == [b"mine"]


async def test_a_flow_belongs_to_its_association(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node, other = await proxy.node(), await proxy.node("mallory")
    path, thief, flow = new_path(node), new_path(other), Flow(node)
    await flow.opened(path)
    stolen = Up(other.association, flow.number, 1, 50, echo.endpoint, b"stolen")
    thief.send(stolen)
    # With keys of its own the other one has flows of its own; this number is none of them.
    assert await thief.receive() == state_of(stolen, FlowStatus.ENDED)
    assert echo.received == []
    path.send(flow.up(echo.endpoint, b"mine"))
    assert await path.down() == (echo.endpoint, b"mine")


async def test_what_the_rules_deny_is_not_sent(start_proxy: StartProxy, echo: UdpServer, new_path: NewPath):
    proxy = await start_proxy(deny=(ip_network("127.0.0.9/32"),))
    denied = UdpServer("127.0.0.9")
    try:
        node = await proxy.node()
        path, flow = new_path(node), Flow(node)
        await flow.opened(path)
        for destination in (denied.endpoint, Endpoint.of("10.1.2.3", 53), proxy.endpoint):
            path.send(flow.up(destination, b"denied"))
        path.send(flow.up(echo.endpoint, b"allowed"))
        assert await path.down() == (echo.endpoint, b"allowed")
        (view,) = await listed(proxy)
        assert view["dropped"]["denied"] == 3
        assert denied.received == []
    finally:
        denied.close()


# -- ends -----------------------------------------------------------------------------------------------------------


async def test_datagrams_open_nothing(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node = await proxy.node()
    path, flow = new_path(node), Flow(node)
    up = flow.up(echo.endpoint, b"too early")
    path.send(up)
    assert await path.receive() == state_of(up, FlowStatus.ENDED)
    assert echo.received == []
    await flow.opened(path)  # its number is not spent by that


async def test_a_flow_that_is_silent_is_ended(start_proxy: StartProxy, echo: UdpServer, new_path: NewPath):
    proxy = await start_proxy(udp_idle_s=0.2)
    node = await proxy.node()
    path, flow = new_path(node), Flow(node)
    await flow.opened(path)
    path.send(flow.up(echo.endpoint, b"!"))
    await path.down()
    for _ in range(4):  # keeping it open is enough
        await asyncio.sleep(0.1)
        await flow.opened(path)
    for _ in range(4):  # servers cannot keep it
        await asyncio.sleep(0.1)
        echo.sock.sendto(b"still there?", echo.sources[0])
    await eventually(lambda: proxy.proxy._core is not None and not len(proxy.proxy._core.udp))
    attach = flow.attach()
    path.send(attach)
    while isinstance(message := await path.receive(), Down):
        pass
    assert message == state_of(attach, FlowStatus.ENDED)


async def test_no_more_than_allowed(start_proxy: StartProxy, new_path: NewPath):
    proxy = await start_proxy(limits=ProxyLimits(udp_associations_per_user=2))
    node, other = await proxy.node(), await proxy.node("bob")
    path = new_path(node)
    first, second, third = (Flow(node, number) for number in (1, 2, 3))
    await first.opened(path)
    await second.opened(path)
    attach = third.attach()
    path.send(attach)
    assert await path.receive() == state_of(attach, FlowStatus.LIMIT)
    await Flow(other).opened(new_path(other))
    path.send(Detach(node.association, 1, 1, next(first.numbers)))
    assert isinstance(await path.receive(), State)
    await third.opened(path)


async def test_flows_end_with_their_user(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node = await proxy.node()
    path, flow = new_path(node), Flow(node)
    await flow.opened(path)
    await asyncio.to_thread(remove_user, proxy.state, "alice")
    assert await listed(proxy) == []
    path.send(flow.up(echo.endpoint, b"gone"))
    assert await path.is_quiet()
    assert echo.received == []


async def test_new_keys_know_nothing_of_old_flows(start_proxy: StartProxy, echo: UdpServer, new_path: NewPath):
    proxy = await start_proxy(limits=ProxyLimits(associations_per_user=1))
    node = await proxy.node()
    path, flow = new_path(node), Flow(node)
    await flow.opened(path)
    old_keys = node.keys
    node.channels.pop().close()  # then the association gives its place to another one, and comes back with new keys
    core = proxy.proxy._core
    assert core is not None
    await eventually(lambda: not core.associations.channels())
    second = await proxy.node(link=node.link)
    second.channels.pop().close()
    await eventually(lambda: not core.associations.channels())
    await node.associate()
    assert node.keys.key_up != old_keys.key_up
    again = Flow(node)
    await again.opened(path)
    path.send(again.up(echo.endpoint, b"new"))
    assert await path.down() == (echo.endpoint, b"new")
    assert len(await listed(proxy)) == 1


async def test_noise_disturbs_nobody(proxy: RunningProxy, echo: UdpServer, new_path: NewPath):
    node = await proxy.node()
    path, noise, flow = new_path(node), new_path(node), Flow(node)
    await flow.opened(path)
    source = random.Random(7)
    good = encode_udp_flow(flow.up(echo.endpoint, bytes(40)), udp_flow_key(node.keys.key_up))
    for _ in range(300):
        noise.send_raw(source.randbytes(source.randrange(120)))
        noise.send_raw(b"\x01" + bytes((source.randrange(8),)) + source.randbytes(source.randrange(120)))
        damaged = bytearray(good)
        damaged[source.randrange(len(good))] ^= 1 << source.randrange(8)
        noise.send_raw(bytes(damaged[: source.randrange(len(good))] if source.random() < 0.5 else damaged))
        await asyncio.sleep(0)  # the proxy lives in this loop
    path.send(flow.up(echo.endpoint, b"still here"))
    assert await path.down() == (echo.endpoint, b"still here")
    assert echo.received == [b"still here"]
    assert await noise.is_quiet()
