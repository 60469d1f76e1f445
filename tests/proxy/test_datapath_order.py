"""What the proxy asks of its datapath, and in which order: the relay, watched, and made as choosy as a splice is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy, eventually
from tests.proxy.mobile_node import Server, dial, read_exactly, receive, reset, send
from tests.proxy.test_happy_eyeballs import silent

from msocks.datapath.interface import Carriage
from msocks.datapath.relay import RelayConduit, RelayDatapath
from msocks.errors import EndReason
from msocks.protocol.control import SessionEnded
from msocks.protocol.leg import CloseMode, DatapathKind, DatapathReason, LegStatus
from msocks.proxy.resolver import Resolver
from msocks.transport.kernel import tcp_info
from msocks.values.endpoint import Address, Endpoint
from msocks.values.ids import SessionId

UNFIT = Carriage(DatapathKind.NONE, DatapathReason.UNEQUAL_OPTIONS, handover=False)
NO_HANDOVER = Carriage(DatapathKind.RELAY, DatapathReason.TINY_WINDOW, handover=False)
TCP_CLOSE = 7
CALLS = ("carriage_for", "state", "stop_leg", "settle", "restart_leg", "attach", "hang_up")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the conduits' methods as they are called, with `stop_leg(handover)` where it is one."""
    noted: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(RelayConduit, name)

        def call(conduit: RelayConduit, *arguments: Any, **named: Any) -> Any:
            noted.append("stop_leg(handover)" if named.get("handover") else name)
            return method(conduit, *arguments, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(RelayConduit, name, watched(name))
    return noted


def answers(monkeypatch: pytest.MonkeyPatch, *carriages: Carriage | None) -> None:
    """What carriage_for says from now on, call by call; None, and every call behind the last one, what is true."""
    remaining = list(carriages)
    truly = RelayConduit.carriage_for

    def carriage_for(conduit: RelayConduit, leg: socket.socket, *, split: bool = False) -> Carriage:
        assert leg.getpeername()
        said = remaining.pop(0) if remaining else None
        return said or truly(conduit, leg)

    monkeypatch.setattr(RelayConduit, "carriage_for", carriage_for)


def plain_connect(destination: Endpoint) -> bytes:
    """The greeting and the request of a plain SOCKS5 client in one write."""
    assert destination.address is not None
    return b"\5\1\0" + b"\5\1\0\1" + destination.address.packed + destination.port.to_bytes(2, "big")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_session_begins_without_stopping_anything(proxy: RunningProxy, server: Server, calls: list[str]):
    node = await proxy.node()
    await node.open_session(server.endpoint)
    assert [call for call in calls if call != "state"] == ["carriage_for", "attach"]


@pytest.mark.parametrize(("handover_from", "stop"), [(0, "stop_leg"), (1, "stop_leg(handover)")])
async def test_a_reconnect_asks_first_then_stops_then_asks_again(
    proxy: RunningProxy, server: Server, calls: list[str], handover_from: int, stop: str
):
    node = await proxy.node()
    session, _ = await node.open_session(server.endpoint)
    calls.clear()
    second = await node.reconnect(session, 2, 0, 0, handover_from=handover_from)
    assert (await second.reply()).status is LegStatus.OK
    assert calls[: calls.index("attach")] == ["carriage_for", "state", stop, "settle", "carriage_for", "state"]


async def test_what_is_refused_at_once_does_not_touch_the_live_leg(
    proxy: RunningProxy, server: Server, calls: list[str]
):
    node = await proxy.node()
    session, _ = await node.open_session(server.endpoint)
    calls.clear()
    liar = await node.reconnect(session, 2, 1000, 0)
    assert (await liar.reply()).status is LegStatus.BAD_OFFSETS
    assert calls == ["carriage_for", "state"]


@pytest.mark.parametrize("told", [(UNFIT,), (None, UNFIT)], ids=["at once", "after the live leg was stopped"])
async def test_a_leg_that_nothing_can_carry_is_told_and_the_live_one_goes_on(
    proxy: RunningProxy, server: Server, monkeypatch: pytest.MonkeyPatch, told: tuple[Carriage | None, ...]
):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    answers(monkeypatch, *told)
    unfit = await node.reconnect(session, 2, 0, 0)
    reply = await unfit.reply()
    assert (reply.status, reply.generation, unfit.verified) == (LegStatus.CANNOT_SPLICE, 1, True)
    await send(remote, b"on")
    assert await read_exactly(leg.sock, 2) == b"on"
    assert [entry["reason"] for entry in proxy.events("leg_cannot_be_spliced")] == ["unequal_options"]
    fit = await node.reconnect(session, 2, 2, 0)
    assert (await fit.reply()).status is LegStatus.OK


async def test_a_session_whose_first_leg_nothing_can_carry_waits_for_another(
    proxy: RunningProxy, server: Server, monkeypatch: pytest.MonkeyPatch
):
    node = await proxy.node()
    session = SessionId.generate()
    answers(monkeypatch, UNFIT)
    unfit = await node.connect(session, server.endpoint)
    assert (await unfit.reply()).status is LegStatus.CANNOT_SPLICE
    remote = await server.accept()
    second = await node.connect(session, server.endpoint, generation=2, early=b"hello")
    reply = await second.reply()
    assert (reply.status, reply.datapath) == (LegStatus.OK, DatapathKind.RELAY)
    assert await read_exactly(remote, 5) == b"hello"


async def test_a_plain_client_that_nothing_can_carry_is_refused(
    open_proxy: RunningProxy, server: Server, monkeypatch: pytest.MonkeyPatch
):
    answers(monkeypatch, UNFIT)
    sock = await dial(open_proxy.endpoint)
    with sock:
        await send(sock, plain_connect(server.endpoint))
        assert await read_exactly(sock, 4) == b"\5\0" + b"\5\1"
        with pytest.raises(ConnectionResetError):
            await receive(await server.accept())


async def test_a_leg_that_the_live_one_cannot_hand_over_to_must_take_over(
    proxy: RunningProxy, server: Server, monkeypatch: pytest.MonkeyPatch
):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    answers(monkeypatch, NO_HANDOVER, NO_HANDOVER, NO_HANDOVER)
    second = await node.reconnect(session, 2, 0, 0, handover_from=1)
    assert (await second.reply()).status is LegStatus.LEG_GONE
    await send(remote, b"on")
    assert await read_exactly(leg.sock, 2) == b"on"
    third = await node.reconnect(session, 2, 2, 0)
    reply = await third.reply()
    assert (reply.status, reply.datapath_reason) == (LegStatus.OK, DatapathReason.TINY_WINDOW)


async def test_a_leg_that_the_datapath_does_not_take_is_closed(
    proxy: RunningProxy, server: Server, monkeypatch: pytest.MonkeyPatch
):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()

    def attach(_conduit: RelayConduit, _attachment: object) -> None:
        raise ValueError("not this one")

    before = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(RelayConduit, "attach", attach)
        second = await node.reconnect(session, 2, 0, 0)
        for sock in (second.sock, leg.sock, remote):
            with pytest.raises(ConnectionResetError):
                await receive(sock)
        plain = await node.connect(SessionId.generate(), server.endpoint)
        with pytest.raises(ConnectionResetError):
            await receive(plain.sock)
    assert await node.channels[0].hear(SessionEnded) == SessionEnded(session, EndReason.PROXY_FAILED)
    assert len(proxy.events("session_failed")) == 2
    # The proxy has closed two of the first session, the test has opened one for each of two attempts.
    await eventually(lambda: open_descriptors() == before)
    # The numbers of those descriptors are used again, and nobody watches them.
    for _ in range(5):
        _, again = await node.open_session(server.endpoint)
        await send(again.sock, b"still works")


async def test_a_hang_up_is_left_to_the_datapath(proxy: RunningProxy, server: Server, calls: list[str]):
    node = await proxy.node()
    session, _ = await node.open_session(server.endpoint)
    calls.clear()
    assert (await node.close_session(session, 1, CloseMode.GRACEFUL, 0)).status is LegStatus.OK
    assert calls == ["state", "hang_up"]


async def test_every_listener_is_prepared_before_it_listens(start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch):
    prepared: list[Endpoint] = []

    def prepare_listener(_datapath: RelayDatapath, sock: socket.socket) -> None:
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        prepared.append(Endpoint.from_sockaddr(sock.getsockname()))

    monkeypatch.setattr(RelayDatapath, "prepare_listener", prepare_listener)
    proxy = await start_proxy(listen=(Endpoint.parse("127.0.0.1:0"), Endpoint.parse("127.0.0.2:0")))
    assert tuple(prepared) == proxy.proxy.endpoints


class Prepared(NamedTuple):
    """A server leg: where it goes, where the leg that waits for it comes from, and the MTU that it has to fit."""

    destination: Endpoint
    source: Endpoint | None
    smallest_mtu: int | None


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Prepared]:
    """What the datapath is told of each server leg."""
    noted: list[Prepared] = []

    def prepare_server_leg(
        _datapath: RelayDatapath,
        sock: socket.socket,
        *,
        destination: tuple[Address, int],
        leg: socket.socket | None,
        smallest_mtu: int | None,
    ) -> None:
        assert tcp_info(sock).state == TCP_CLOSE
        source = Endpoint.from_sockaddr(leg.getpeername()) if leg is not None else None
        noted.append(Prepared(Endpoint(*destination), source, smallest_mtu))

    monkeypatch.setattr(RelayDatapath, "prepare_server_leg", prepare_server_leg)
    return noted


async def test_a_server_leg_is_prepared_for_its_leg_and_the_smallest_link(
    proxy: RunningProxy, server: Server, prepared: list[Prepared]
):
    node = await proxy.node()
    for mtu in (1380, 0, 1420):  # 0: not known
        await node.open_channel(smallest_mtu=mtu)
    await eventually(lambda: len(proxy.events("channel_opened")) == 4)
    _, leg = await node.open_session(server.endpoint)
    assert prepared == [Prepared(server.endpoint, Endpoint.from_sockaddr(leg.sock.getsockname()), 1380)]


async def test_a_plain_clients_server_leg_has_to_fit_no_mtu(
    open_proxy: RunningProxy, server: Server, prepared: list[Prepared]
):
    sock = await dial(open_proxy.endpoint)
    with sock:
        await send(sock, plain_connect(server.endpoint))
        assert (await read_exactly(sock, 4))[2:] == b"\5\0"
        assert prepared == [Prepared(server.endpoint, Endpoint.from_sockaddr(sock.getsockname()), None)]


async def test_a_server_leg_is_prepared_without_a_leg_where_that_is_lost(
    proxy: RunningProxy,
    server: Server,
    prepared: list[Prepared],
    monkeypatch: pytest.MonkeyPatch,
):
    async def resolve(_resolver: Resolver, _name: str) -> list[Address]:
        return [ip_address("127.0.0.2"), ip_address("127.0.0.1")]

    monkeypatch.setattr(Resolver, "resolve", resolve)
    node = await proxy.node()
    with silent("127.0.0.2", server.endpoint.port):
        leg = await node.connect(SessionId.generate(), Endpoint.of("two.example", server.endpoint.port))
        source = Endpoint.from_sockaddr(leg.sock.getsockname())
        first = Prepared(Endpoint.of("127.0.0.2", server.endpoint.port), source, 1500)
        await eventually(lambda: prepared == [first])
        reset(leg.sock)
        await server.accept()
    assert prepared == [first, Prepared(server.endpoint, None, 1500)]
