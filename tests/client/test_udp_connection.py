"""A UDP flow of the mobile node against a proxy whose part the test plays: real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from msocks.client import udp_connection, udp_path
from msocks.client.udp_connection import UdpConnection
from msocks.errors import LinkUnavailable, MsocksError, SessionEnded
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
from msocks.session.mobile_effects import Carried, SessionState
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint
from msocks.values.ids import AssociationId

PATIENCE_S = 3.0
QUIET_S = 0.1
SERVER = Endpoint.parse("192.0.2.9:53")
ADDRESSES = {"wifi": "127.0.0.2", "lte": "127.0.0.3"}


class Keys:
    """The association, as legs and flows need it."""

    def __init__(self) -> None:
        self.id = AssociationId.generate()
        self.key_up, self.key_down = b"u" * 32, b"d" * 32
        self._flows = itertools.count(1)

    def next_leg_number(self) -> int:
        raise NotImplementedError

    def expiry_ms(self) -> int:
        raise NotImplementedError

    def proxy_time_is(self, proxy_ms: int) -> None:
        raise NotImplementedError

    def forgotten(self, key_up: bytes) -> None:
        raise NotImplementedError

    def next_udp_flow(self) -> int:
        return next(self._flows)


class Bench:
    """The node, the program, and a proxy that does what the test says."""

    def __init__(self) -> None:
        self.reactor = Reactor(asyncio.get_running_loop())
        self.authority = Keys()
        self.proxy = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.proxy.bind(("127.0.0.1", 0))
        self.down_numbers = itertools.count()
        self.own = {link: (ip_address(address),) for link, address in ADDRESSES.items()}
        self.failing: set[str] = set()
        self.carried: list[Carried] = []
        self.parked = 0
        self.ended: list[MsocksError | None] = []
        self.datagrams: list[tuple[Endpoint, bytes]] = []
        self.forgotten: list[UdpConnection] = []
        self.flow = UdpConnection(self, self)

    # -- the node

    def open_udp(self, link: str, turn: int) -> socket.socket:
        if link in self.failing:
            raise OSError(errno.ENETUNREACH, "unreachable")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((ADDRESSES[link], 0))
        sock.connect(self.proxy.getsockname())
        return sock

    def addresses(self, link: str) -> tuple[Address, ...]:
        return self.own[link]

    def sent(self, link: str) -> None:
        assert link in ADDRESSES

    def forget_udp(self, connection: UdpConnection) -> None:
        self.forgotten.append(connection)

    # -- the program

    def on_carried(self, carried: Carried) -> None:
        self.carried.append(carried)

    def on_parked(self) -> None:
        self.parked += 1

    def on_ended(self, error: MsocksError | None) -> None:
        self.ended.append(error)

    def on_datagram(self, source: Endpoint, payload: bytes) -> None:
        self.datagrams.append((source, payload))

    # -- the proxy

    async def hear(self, within_s: float = PATIENCE_S) -> tuple[UdpFlowMessage, tuple[str, int]]:
        loop = asyncio.get_running_loop()
        datagram, source = await asyncio.wait_for(loop.sock_recvfrom(self.proxy, 65536), within_s)
        signed = decode_udp_flow(datagram)
        assert signed.verify(udp_flow_key(self.authority.key_up))
        return signed.message, source

    async def hear_attach(self, generation: int, link: str) -> tuple[Attach, tuple[str, int]]:
        while True:
            message, source = await self.hear()
            if isinstance(message, Attach) and message.generation == generation:
                assert source[0] == ADDRESSES[link]
                return message, source

    async def hear_up(self) -> tuple[Up, tuple[str, int]]:
        while True:
            message, source = await self.hear()
            if isinstance(message, Up):
                return message, source

    def say(self, message: UdpFlowMessage, to: tuple[str, int], key: bytes | None = None) -> None:
        self.proxy.sendto(encode_udp_flow(message, udp_flow_key(self.authority.key_down) if key is None else key), to)

    def answer(self, attach: Attach, to: tuple[str, int], status: FlowStatus = FlowStatus.OPEN) -> None:
        self.say(State(attach.association, attach.flow, attach.generation, attach.number, status), to)

    def down(self, flow: int, payload: bytes, number: int | None = None) -> Down:
        number = next(self.down_numbers) if number is None else number
        return Down(self.authority.id, flow, 1, number, SERVER, payload)

    async def opened(self, *links: str, rtt_s: float | None = None) -> tuple[Attach, tuple[str, int]]:
        """The first path stands, on the first link."""
        self.flow.links_changed(links, {} if rtt_s is None else dict.fromkeys(links, rtt_s))
        attach, source = await self.hear_attach(1, links[0])
        self.answer(attach, source)
        await self.until(lambda: self.flow.state is SessionState.LIVE)
        return attach, source

    async def until(self, condition: object, within_s: float = PATIENCE_S) -> None:
        assert callable(condition)
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def close(self) -> None:
        if self.flow.state is not SessionState.ENDED:
            self.flow.abort()
        self.proxy.close()
        self.reactor.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.close()


# -- paths ----------------------------------------------------------------------------------------------------------


async def test_it_asks_until_it_is_answered(bench: Bench):
    bench.flow.links_changed(("wifi",), {})
    asked = [await bench.hear() for _ in range(3)]
    assert [(type(message), message.generation, message.number) for message, _ in asked] == [
        (Attach, 1, number) for number in range(3)
    ]
    assert bench.flow.state is SessionState.CONNECTING
    message, source = asked[1]  # the answer to any of them will do
    assert isinstance(message, Attach)
    bench.answer(message, source)
    await bench.until(lambda: bench.carried)
    assert (bench.carried[0].link, bench.carried[0].from_link) == ("wifi", None)


async def test_an_old_path_carries_on_until_the_new_one_stands(bench: Bench):
    first, wifi = await bench.opened("wifi", "lte")
    moving = asyncio.ensure_future(bench.flow.move("lte"))
    attach, lte = await bench.hear_attach(2, "lte")
    bench.flow.send(SERVER, b"meanwhile")
    up, source = await bench.hear_up()
    assert (up.payload, up.generation, source) == (b"meanwhile", 1, wifi)
    bench.answer(attach, lte)
    await moving
    bench.flow.send(SERVER, b"now")
    up, source = await bench.hear_up()
    assert (up.payload, up.generation, up.flow, source) == (b"now", 2, first.flow, lte)
    # What was under way on the old one arrives.
    bench.say(bench.down(first.flow, b"late"), wifi)
    await bench.until(lambda: bench.datagrams == [(SERVER, b"late")])
    assert bench.flow.moves == 1


async def test_an_old_path_is_closed_after_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(udp_connection, "LINGER_S", 0.1)
    first, wifi = await bench.opened("wifi", "lte")
    moving = asyncio.ensure_future(bench.flow.move("lte"))
    attach, lte = await bench.hear_attach(2, "lte")
    bench.answer(attach, lte)
    await moving
    await asyncio.sleep(0.2)
    bench.say(bench.down(first.flow, b"too late"), wifi)
    bench.say(bench.down(first.flow, b"in time"), lte)
    await bench.until(lambda: bench.datagrams)
    assert bench.datagrams == [(SERVER, b"in time")]


async def test_a_move_that_is_not_answered_leaves_no_doubt_where_the_proxy_sends(bench: Bench):
    """It may have heard of the new path, and send there: so the old one is attached anew, with a higher generation."""
    await bench.opened("wifi", "lte", rtt_s=0.01)
    moving = asyncio.ensure_future(bench.flow.move("lte"))
    with pytest.raises(LinkUnavailable):
        await asyncio.wait_for(moving, 5)
    attach, source = await bench.hear_attach(3, "wifi")
    bench.answer(attach, source)
    await bench.until(lambda: bench.flow.state is SessionState.LIVE)
    assert bench.flow.link == "wifi"


async def test_a_link_that_is_lost_is_left_at_once(bench: Bench):
    await bench.opened("wifi", "lte")
    bench.flow.links_changed(("lte",), {})
    assert (bench.flow.state, bench.parked) == (SessionState.PARKED, 1)
    bench.flow.send(SERVER, b"held")
    attach, lte = await bench.hear_attach(2, "lte")
    bench.answer(attach, lte)
    up, source = await bench.hear_up()
    assert (up.payload, source) == (b"held", lte)


async def test_a_source_address_that_is_gone_is_a_lost_path(bench: Bench):
    await bench.opened("wifi")
    bench.own["wifi"] = (IPv4Address("127.0.0.99"),)
    bench.flow.links_changed(("wifi",), {})
    assert bench.parked == 1
    await bench.hear_attach(2, "wifi")


async def test_what_was_held_for_too_long_is_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(udp_connection, "HELD_S", 0.2)
    await bench.opened("wifi")
    bench.flow.links_changed((), {})
    bench.flow.send(SERVER, b"stale")
    await asyncio.sleep(0.3)
    bench.flow.send(SERVER, b"fresh")
    bench.flow.links_changed(("wifi",), {})
    attach, source = await bench.hear_attach(2, "wifi")
    bench.answer(attach, source)
    assert (await bench.hear_up())[0].payload == b"fresh"
    assert bench.flow.dropped == 1


async def test_a_link_that_cannot_be_used_is_passed_over(bench: Bench):
    bench.failing.add("wifi")
    bench.flow.links_changed(("wifi", "lte"), {})
    attach, lte = await bench.hear_attach(2, "lte")
    bench.answer(attach, lte)
    await bench.until(lambda: bench.flow.state is SessionState.LIVE)


# -- what keeps a path, and what ends it ----------------------------------------------------------------------------


async def test_an_idle_path_is_asked_and_one_that_does_not_answer_is_dead(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(udp_path, "KEEP_ALIVE_S", 0.15)
    monkeypatch.setattr(udp_path, "ASK_AGAIN_S", 0.05)
    _, source = await bench.opened("wifi")
    for _ in range(3):
        message, _ = await bench.hear()
        assert isinstance(message, Attach)
        assert message.generation == 1
        bench.answer(message, source)
    assert bench.parked == 0
    numbers = []
    while not bench.parked:
        message, _ = await bench.hear()
        if message.generation == 1:
            numbers.append(message.number)
    assert len(numbers) == udp_path.UNANSWERED
    await bench.hear_attach(2, "wifi")


async def test_traffic_in_both_directions_spares_the_questions(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(udp_path, "KEEP_ALIVE_S", 0.2)
    attach, source = await bench.opened("wifi")
    for _ in range(10):
        bench.flow.send(SERVER, b"?")
        message, _ = await bench.hear()
        assert isinstance(message, Up)
        bench.say(bench.down(attach.flow, b"!"), source)
        await asyncio.sleep(0.05)
    assert len(bench.datagrams) == 10


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_traffic_in_one_direction_alone_does_not(bench: Bench, monkeypatch: pytest.MonkeyPatch, direction: str):
    monkeypatch.setattr(udp_path, "KEEP_ALIVE_S", 0.15)
    attach, source = await bench.opened("wifi")
    loop = asyncio.get_running_loop()
    asked, end = False, loop.time() + 1
    while not asked and loop.time() < end:
        if direction == "up":
            bench.flow.send(SERVER, b"!")
        else:
            bench.say(bench.down(attach.flow, b"!"), source)
        await asyncio.sleep(0.02)
        with contextlib.suppress(BlockingIOError):
            while True:
                asked |= isinstance(decode_udp_flow(bench.proxy.recv(65536)).message, Attach)
    assert asked


async def test_a_nat_that_has_forgotten_is_shown_the_new_way_at_once(bench: Bench):
    await bench.opened("wifi")
    bench.flow.rebound("lte")
    with pytest.raises(TimeoutError):
        await bench.hear(QUIET_S)
    bench.flow.rebound("wifi")
    message, _ = await bench.hear(QUIET_S)
    assert isinstance(message, Attach)
    assert message.generation == 1


# -- what the proxy says --------------------------------------------------------------------------------------------


async def test_datagrams_are_taken_once_and_only_if_they_are_the_proxys(bench: Bench):
    attach, source = await bench.opened("wifi")
    flow, wrong = attach.flow, udp_flow_key(bench.authority.key_up)
    genuine = bench.down(flow, b"genuine")
    bench.say(genuine, source)
    bench.say(genuine, source)
    bench.say(bench.down(flow, b"forged"), source, key=wrong)
    bench.say(bench.down(flow + 1, b"of another flow"), source)
    bench.say(Down(AssociationId.generate(), flow, 1, 90, SERVER, b"of another association"), source)
    bench.proxy.sendto(b"nonsense", source)
    bench.proxy.sendto(b"", source)
    bench.say(bench.down(flow, b"last", number=100), source)
    bench.say(bench.down(flow, b"late", number=50), source)
    await bench.until(lambda: len(bench.datagrams) == 3)
    await asyncio.sleep(0.05)
    assert [payload for _, payload in bench.datagrams] == [b"genuine", b"last", b"late"]


async def test_a_state_counts_only_where_it_was_asked_for(bench: Bench):
    attach, source = await bench.opened("wifi", "lte")
    ended = State(bench.authority.id, attach.flow, 1, 77, FlowStatus.ENDED)
    bench.say(ended, source, udp_flow_key(bench.authority.key_up))
    bench.say(replace(ended, flow=attach.flow + 1), source)
    bench.say(replace(ended, association=AssociationId.generate()), source)
    moving = asyncio.ensure_future(bench.flow.move("lte"))
    question, lte = await bench.hear_attach(2, "lte")
    for number in (attach.number, question.number + 1):  # recorded; made up
        bench.say(State(question.association, question.flow, 2, number, FlowStatus.OPEN), lte)
    await asyncio.sleep(0.05)
    assert (bench.flow.link, bench.flow.reopened, moving.done()) == ("wifi", 0, False)
    bench.answer(question, lte)
    await moving


async def test_a_flow_that_the_proxy_has_lost_is_opened_anew(bench: Bench):
    first, source = await bench.opened("wifi")
    bench.flow.rebound("wifi")
    question, _ = await bench.hear()
    assert isinstance(question, Attach)
    bench.answer(question, source, FlowStatus.ENDED)
    attach, again = await bench.hear_attach(2, "wifi")
    assert attach.flow != first.flow
    assert attach.number == 0  # another flow counts anew
    bench.answer(attach, again)
    await bench.until(lambda: bench.flow.state is SessionState.LIVE)
    assert bench.flow.reopened == 1
    bench.flow.send(SERVER, b"!")
    assert (await bench.hear_up())[0].flow == attach.flow
    # The numbers of what comes down begin anew, too.
    bench.say(bench.down(attach.flow, b"new", number=0), again)
    await bench.until(lambda: bench.datagrams == [(SERVER, b"new")])


async def test_datagrams_for_a_flow_that_is_not_there_tell_it_as_well(bench: Bench):
    first, source = await bench.opened("wifi")
    bench.flow.send(SERVER, b"!")
    up, _ = await bench.hear_up()
    bench.say(State(bench.authority.id, up.flow, 1, up.number, FlowStatus.ENDED), source)
    attach, _ = await bench.hear_attach(2, "wifi")
    assert attach.flow != first.flow


async def test_new_keys_mean_a_new_flow(bench: Bench):
    first, _ = await bench.opened("wifi")
    bench.flow.keys_changed(bench.authority.key_up)  # the same: another channel has come up
    assert bench.flow.state is SessionState.LIVE
    bench.authority.key_up, bench.authority.key_down = b"U" * 32, b"D" * 32
    bench.flow.keys_changed(bench.authority.key_up)
    attach, source = await bench.hear_attach(2, "wifi")
    assert attach.flow != first.flow
    bench.answer(attach, source)
    await bench.until(lambda: bench.flow.state is SessionState.LIVE)


async def test_a_limit_ends_a_flow_that_never_stood(bench: Bench):
    bench.flow.links_changed(("wifi",), {})
    attach, source = await bench.hear_attach(1, "wifi")
    bench.answer(attach, source, FlowStatus.LIMIT)
    await bench.until(lambda: bench.ended)
    assert isinstance(bench.ended[0], SessionEnded)
    assert bench.forgotten == [bench.flow]


async def test_the_proxy_is_told_of_the_end(bench: Bench):
    attach, source = await bench.opened("wifi")
    bench.flow.abort()
    message, from_ = await bench.hear()
    assert (message, from_) == (Detach(attach.association, attach.flow, 1, message.number), source)
    assert bench.ended == [None]
    with pytest.raises(SessionEnded):
        await bench.flow.move("lte")
