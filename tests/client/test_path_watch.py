"""What the links of a lab can do, found out with real probes, a real proxy, and real cuts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.client.mobile_lab import LinksOfANode, links_of_a_node, make_user, on_host, start_proxy

from msocks.client.association import boot_time_s
from msocks.client.path_probe import ProbeKeys, ProbeSocket
from msocks.protocol.probe import Probe, ProbeAnswer, decode_probe, encode_probe, probe_key
from msocks.session.split_path import NEEDED, SplitPath
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId
from msocks.values.link import LinkState
from msocks_lab import CutMode, Direction, Lab, LabConfig, LinkConfig

SINK_PORT = 7272
BUSY_PORT = 7373


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    links = [LinkConfig("wifi", rtt_ms=5, rate_mbit=50), LinkConfig("lte", rtt_ms=50, rate_mbit=20, nat=True)]
    with Lab(LabConfig(links)) as built:
        yield built


@pytest.fixture(scope="module")
def access(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AccessLink:
    """An access link to a proxy that runs."""
    state = tmp_path_factory.mktemp("proxy")
    made = make_user(lab, state)
    start_proxy(lab, state)
    return made


@contextlib.asynccontextmanager
async def node_of(lab: Lab, access: AccessLink) -> AsyncIterator[LinksOfANode]:
    """A node whose links are proven, and measured more than once."""
    async with links_of_a_node(lab, access) as node:
        await node.until(lambda: set(node.told.opened) == {"wifi", "lte"})
        await node.until(lambda: node.watch.public_endpoint("wifi") and node.watch.public_endpoint("lte"))
        await asyncio.sleep(0.15)
        try:
            yield node
        finally:
            for name in ("wifi", "lte"):
                if lab.link(name).describe()["state"] != "up":
                    await asyncio.to_thread(lab.link(name).restore)


async def use(node: LinksOfANode, name: str, seconds: float) -> None:
    """Act as if bytes were sent on a leg, all the time."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        node.watch.sent(name)
        await asyncio.sleep(0.01)


async def cut(lab: Lab, name: str, mode: CutMode = CutMode.SILENT, direction: Direction = Direction.BOTH) -> float:
    return (await asyncio.to_thread(lab.link(name).cut, mode, direction)).done


async def restore(lab: Lab, name: str) -> float:
    return (await asyncio.to_thread(lab.link(name).restore)).done


async def test_living_links_are_up_measured_and_seen_from_outside(lab: Lab, access: AccessLink):
    async with node_of(lab, access) as node:
        for name, low, high in (("wifi", 5, 10), ("lte", 50, 58)):
            assert node.watch.state(name) is LinkState.UP
            assert node.link(name).state is LinkState.UP
            rtt_ms = node.watch.rtt_ms(name)
            assert rtt_ms is not None
            assert low <= rtt_ms <= high
        wifi, lte = node.watch.public_endpoint("wifi"), node.watch.public_endpoint("lte")
        assert wifi is not None
        assert lte is not None
        assert wifi.host in node.link("wifi").addresses
        assert lte.host not in node.link("lte").addresses, "behind a NAT"
        assert node.watch.rtt_ms("nonsense") is None
        assert node.watch.state("nonsense") is LinkState.DOWN
        assert node.watch.public_endpoint("nonsense") is None


@pytest.mark.parametrize(("name", "within_s"), [("wifi", 0.4), ("lte", 0.7)])
async def test_a_silent_cut_of_a_link_in_use_is_found_and_its_end_too(
    lab: Lab, access: AccessLink, name: str, within_s: float
):
    """No event of netlink or of a socket tells of it. The other link is not affected."""
    other = "lte" if name == "wifi" else "wifi"
    async with node_of(lab, access) as node:
        traffic = asyncio.create_task(use(node, name, 30))
        await asyncio.sleep(0.5)
        node.changes.clear()
        at = await cut(lab, name)
        assert await node.until_state(name, LinkState.SILENT) - at < within_s
        at = await restore(lab, name)
        assert 0.25 < await node.until_state(name, LinkState.UP) - at < 1.0
        traffic.cancel()
        states = [change.after.state for _, change in node.changes if change.name == name and change.after]
        assert states == [LinkState.SILENT, LinkState.UP]
        assert not [change for _, change in node.changes if change.name == other]
        assert node.watch.state(other) is LinkState.UP


@pytest.mark.parametrize("direction", [Direction.UP, Direction.DOWN])
async def test_a_cut_of_one_direction_is_silence_too(lab: Lab, access: AccessLink, direction: Direction):
    async with node_of(lab, access) as node:
        traffic = asyncio.create_task(use(node, "wifi", 30))
        await asyncio.sleep(0.3)
        at = await cut(lab, "wifi", direction=direction)
        assert await node.until_state("wifi", LinkState.SILENT) - at < 0.45
        traffic.cancel()


async def test_silence_is_found_when_an_idle_flow_wakes_up(lab: Lab, access: AccessLink):
    async with node_of(lab, access) as node:
        await use(node, "wifi", 0.2)
        await asyncio.sleep(1)
        await cut(lab, "wifi")
        began = time.monotonic()
        await use(node, "wifi", 0.6)
        await node.until_state("wifi", LinkState.SILENT)
        assert time.monotonic() - began < 0.8


async def test_the_only_link_left_is_up_again_with_the_first_sign_of_life(lab: Lab, access: AccessLink):
    async with node_of(lab, access) as node:
        node.wanted = True
        await use(node, "wifi", 0.3)
        await cut(lab, "wifi")
        await cut(lab, "lte")
        await use(node, "wifi", 0.5)
        await use(node, "lte", 0.5)
        await node.until(lambda: node.watch.state("wifi") is node.watch.state("lte") is LinkState.SILENT)
        await asyncio.sleep(0.5)
        for name in ("lte", "wifi"):
            at = await restore(lab, name)
            back = await node.until_state(name, LinkState.UP) - at
            assert back < 0.25 if name == "lte" else back > 0.25, "wifi has to prove itself, lte did not"


async def test_carrier_and_addresses_are_told_as_the_kernel_tells_them(lab: Lab, access: AccessLink):
    async with node_of(lab, access) as node:
        at = await cut(lab, "wifi", CutMode.CARRIER)
        assert await node.until_state("wifi", LinkState.DOWN) - at < 0.1
        assert node.watch.rtt_ms("wifi") is None
        assert node.watch.public_endpoint("wifi") is None
        await restore(lab, "wifi")
        await node.until_state("wifi", LinkState.UP)
        await node.until(lambda: node.watch.public_endpoint("wifi"))
        old = node.link("wifi").addresses
        node.changes.clear()
        await asyncio.to_thread(lab.link("wifi").readdress)
        await node.until(lambda: node.link("wifi").addresses and not set(node.link("wifi").addresses) & set(old))
        await node.until(lambda: node.watch.public_endpoint("wifi"))
        public = node.watch.public_endpoint("wifi")
        assert public is not None
        assert public.host in node.link("wifi").addresses


class Leg:
    """A TCP connection over one link to a sink or a source on the proxy's host."""

    def __init__(self, sock: socket.socket, peer: socket.socket) -> None:
        self.sock = sock
        self.peer = peer
        self.error: OSError | None = None
        self._tasks = [asyncio.create_task(self._discard(sock)), asyncio.create_task(self._discard(peer))]

    async def _discard(self, sock: socket.socket) -> None:
        try:
            while await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
                pass
        except OSError as error:
            self.error = error

    async def send(self, sock: socket.socket, node: LinksOfANode, name: str) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                await loop.sock_sendall(sock, bytes(1 << 16))
                node.watch.sent(name)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.sock.close()
        self.peer.close()


@contextlib.asynccontextmanager
async def leg_over(lab: Lab, node: LinksOfANode, name: str, port: int = SINK_PORT) -> AsyncIterator[Leg]:
    with on_host(lab, "proxy"):
        listener = socket.create_server((lab.proxy.ipv4, port))
    listener.setblocking(False)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    loop = asyncio.get_running_loop()
    with listener:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        await loop.sock_connect(sock, (lab.proxy.ipv4, port))
        peer, _ = await loop.sock_accept(listener)
    leg = Leg(sock, peer)
    node.legs.setdefault(name, []).append(sock)
    try:
        yield leg
    finally:
        node.legs[name].remove(sock)
        await leg.close()


@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
async def test_a_transfer_that_fills_a_long_queue_raises_no_alarm_and_its_cut_is_found(
    lab: Lab, access: AccessLink, upload: bool
):
    """The round-trip time grows from 50 to 350 ms; nobody reports what is heard: TCP_INFO tells."""
    lte = lab.link("lte")
    await asyncio.to_thread(lambda: lte.set(queue_ms=300.0))
    try:
        async with node_of(lab, access) as node, leg_over(lab, node, "lte") as leg:
            sending = asyncio.create_task(leg.send(leg.sock if upload else leg.peer, node, "lte"))
            node.changes.clear()
            if upload:  # how fast the queue fills depends on the machine
                await node.until(lambda: (node.watch.rtt_ms("lte") or 0) > 150, 10)
                await asyncio.sleep(0.4)
            else:
                await asyncio.sleep(1.2)
            assert not node.changes, "a false alarm"
            at = await cut(lab, "lte")
            assert await node.until_state("lte", LinkState.SILENT) - at < 4, "TCP alone takes many seconds"
            sending.cancel()
    finally:
        await asyncio.to_thread(lambda: lte.set(queue_ms=100.0))


async def test_where_udp_is_blocked_pings_do_the_work(lab: Lab, access: AccessLink):
    port = access.addresses[0].port
    rules = f"table inet noudp {{ chain input {{ type filter hook input priority 0; udp dport {port} drop; }}; }}\n"
    await asyncio.to_thread(lambda: lab.proxy.run(["nft", "-f", "-"], input=rules))
    try:
        async with links_of_a_node(lab, access) as node:
            await node.until(lambda: set(node.told.opened) == {"wifi", "lte"})
            traffic = asyncio.create_task(use(node, "wifi", 30))
            await asyncio.sleep(1.0)
            assert [change.after.state for _, change in node.changes if change.after] == [LinkState.UP] * 2
            rtt_ms = node.watch.rtt_ms("wifi")
            assert rtt_ms is not None
            assert 5 <= rtt_ms < 40, "of this link, and of no other"
            for last_try in (False, False, True):  # on a busy machine this process or the proxy may be kept waiting
                at = await cut(lab, "wifi")
                found_after_s = await node.until_state("wifi", LinkState.SILENT) - at
                await asyncio.sleep(0.5)
                at = await restore(lab, "wifi")
                assert await node.until_state("wifi", LinkState.UP, 8) - at < 6
                if found_after_s < 0.6:
                    break
                assert not last_try, f"silence is found only after {found_after_s:.2f} s, each time"
            traffic.cancel()
    finally:
        await asyncio.to_thread(lambda: lab.proxy.run(["nft", "delete table inet noudp"]))


async def test_a_nat_that_forgets_is_noticed_and_the_legs_behind_it_fail(lab: Lab, access: AccessLink):
    """The peer's segments do not get through any more. One leg is idle and would never have sent one itself; the other
    has sent something, which TCP would repeat for a quarter of an hour.
    """
    async with (
        node_of(lab, access) as node,
        leg_over(lab, node, "lte") as idle,
        leg_over(lab, node, "lte", SINK_PORT + 1) as busy,
    ):
        traffic = asyncio.create_task(use(node, "lte", 30))
        await asyncio.sleep(0.3)
        before = node.watch.public_endpoint("lte")
        await asyncio.to_thread(lab.link("lte").rebind_nat)
        busy.sock.send(b"never acknowledged")
        await node.until(lambda: node.watch.public_endpoint("lte") != before, 1)
        assert node.watch.state("lte") is LinkState.UP
        assert node.rebound == ["lte"]
        await node.until(lambda: idle.error and busy.error, 6)
        assert isinstance(idle.error, TimeoutError)
        assert isinstance(busy.error, TimeoutError)
        traffic.cancel()


async def test_a_leg_that_lives_survives_its_check(lab: Lab, access: AccessLink, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("msocks.client.leg_check._LASTS_S", 1.6)
    async with node_of(lab, access) as node, leg_over(lab, node, "wifi") as leg:
        node.watch._signs.checks.check(leg.sock)
        assert leg.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1
        await asyncio.sleep(1.7)
        assert leg.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert leg.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 110
        await asyncio.get_running_loop().sock_sendall(leg.sock, b"still here")


async def test_a_leg_survives_the_loss_of_keep_alives(lab: Lab, access: AccessLink):
    """Where 2 % of the packets are lost, one in 25 is not answered. The other leg has a TCP_USER_TIMEOUT besides."""
    async with (
        node_of(lab, access) as node,
        leg_over(lab, node, "wifi") as idle,
        leg_over(lab, node, "wifi", SINK_PORT + 1) as busy,
    ):
        await asyncio.sleep(1.1)  # idle: it asks at once, and again after a second
        busy.sock.send(b"not yet acknowledged")
        node.watch._signs.checks.check(busy.sock)
        await asyncio.sleep(0.5)
        await cut(lab, "wifi")
        node.watch._signs.checks.check(idle.sock)
        await asyncio.sleep(1.4)  # `busy` asks once meanwhile
        await restore(lab, "wifi")
        await asyncio.sleep(2.5)
        for leg in (idle, busy):
            assert not leg.error
            assert leg.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            await asyncio.get_running_loop().sock_sendall(leg.sock, b"still here")


async def test_after_a_suspend_everything_is_asked_anew(lab: Lab, access: AccessLink, monkeypatch: pytest.MonkeyPatch):
    async with node_of(lab, access) as node:
        monkeypatch.setattr("msocks.client.sleep_watch.boot_time_s", lambda: boot_time_s() + 3600)
        node.watch.sent("wifi")
        await node.until(lambda: node.watch.rtt_ms("lte") is None)
        await node.until(lambda: node.watch.rtt_ms("lte") and node.watch.rtt_ms("wifi"))
        assert not node.told.lost, "the channels were verified, and live"


async def test_a_process_that_was_stopped_asks_anew(lab: Lab, access: AccessLink, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("msocks.client.sleep_watch._SLEPT_S", 0.5)
    async with node_of(lab, access) as node:
        verified: list[None] = []
        monkeypatch.setattr(node.channels, "verify_all", lambda: verified.append(None))
        for name in ("wifi", "lte"):
            await use(node, name, 0.1)
        time.sleep(1)  # nothing of this process runs meanwhile  # noqa: ASYNC251
        assert not verified
        await node.until(lambda: verified, 0.5)
        await node.until(lambda: node.watch.rtt_ms("lte") and node.watch.rtt_ms("wifi"))


async def test_an_idle_metered_link_carries_next_to_nothing(lab: Lab, access: AccessLink):
    async with links_of_a_node(lab, access, ["lte"], lte=True) as node:
        await node.until(lambda: node.watch.rtt_ms("lte"))
        assert node.link("lte").metered
        path = node.watch._paths["lte"]
        assert path.health is not None
        path.health._traffic_at -= 1000
        node.watch._tick(path)
        await asyncio.sleep(0.3)
        before = node.association.next_probe_number()
        await asyncio.sleep(1)
        assert node.association.next_probe_number() == before + 1
        assert node.watch.state("lte") is LinkState.UP


def probe_socket(
    lab: Lab,
    node: LinksOfANode,
    port: int,
    on_answer: Callable[[ProbeAnswer, float], None],
    on_refused: Callable[[], None] = lambda: None,
) -> ProbeSocket:
    """One of the test's own, over the node's wifi to a port of the proxy's host."""
    keys, endpoint = ProbeKeys(node.association), Endpoint.of(lab.proxy.ipv4, port)
    return ProbeSocket(
        node.reactor, node.association, keys, node.link("wifi"), endpoint, on_answer, lambda _position: None, on_refused
    )


class FalseProxy(asyncio.DatagramProtocol):
    """Answers probes in its own way."""

    def __init__(self, key_down: bytes) -> None:
        self.key_down = key_down
        self.mode = "garbage"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        probe = decode_probe(data).message
        assert isinstance(probe, Probe)
        observed = Endpoint(IPv4Address(source[0]), source[1])
        answer = ProbeAnswer(probe.association, probe.sequence, probe.time, observed)
        match self.mode:
            case "garbage":
                reply = b"\xff" * 200
            case "echo":
                reply = data
            case "forged":
                reply = encode_probe(answer, probe_key(bytes(32)))
            case "stranger":
                stranger = ProbeAnswer(AssociationId.generate(), probe.sequence, probe.time, observed)
                reply = encode_probe(stranger, probe_key(self.key_down))
            case _:
                reply = encode_probe(answer, probe_key(self.key_down))
        self.transport.sendto(reply, source)  # type: ignore[attr-defined]


async def test_only_the_proxys_own_answers_count(lab: Lab, access: AccessLink):
    """To the port of a proxy that answers with everything but the truth, and then with that."""
    async with links_of_a_node(lab, access, ["wifi"]) as node:
        await node.association.wait_ready(5)
        keys = node.association.keys
        assert keys is not None
        with on_host(lab, "proxy"):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((lab.proxy.ipv4, SINK_PORT))
        loop = asyncio.get_running_loop()
        transport, false_proxy = await loop.create_datagram_endpoint(lambda: FalseProxy(keys.down), sock=sock)
        answers: list[ProbeAnswer] = []
        refused: list[bool] = []
        probe = probe_socket(
            lab, node, SINK_PORT, lambda answer, _received_at: answers.append(answer), lambda: refused.append(True)
        )
        for mode in ("garbage", "echo", "forged", "stranger"):
            false_proxy.mode = mode
            assert probe.send(node.association.next_probe_number(), 1)
            await asyncio.sleep(0.03)
            assert not answers, mode
        false_proxy.mode = "true"
        number = node.association.next_probe_number()
        assert probe.send(number, 1)
        await node.until(lambda: answers)
        assert [answer.sequence for answer in answers] == [number]
        transport.close()
        await asyncio.sleep(0)
        assert probe.send(number, 1)
        await asyncio.sleep(0.03)
        probe.send(number, 1)  # the ICMP error of the one before comes out here at the latest, and does no harm
        assert refused
        probe.close()


async def test_slow_pings_show_no_middlebox_where_probes_are_answered(lab: Lab, access: AccessLink):
    async with node_of(lab, access) as node:
        path = node.watch.path("wifi")
        assert path is not None
        assert path.health is not None
        path.split = SplitPath()
        path.split.on_tcp(0.005)
        number = node.association.next_probe_number()
        for _ in range(NEEDED):
            node.watch.answered("wifi", number, 0.3)
        assert not path.split.is_split
        path.health.udp_blocked = True
        for _ in range(NEEDED):
            node.watch.answered("wifi", number, 0.3)
        assert path.split.is_split


async def test_how_long_a_stopped_proxy_had_a_probe_is_no_part_of_the_round_trip(lab: Lab, tmp_path: Path):
    """Else a busy proxy would look as if something before it answered TCP."""
    access = make_user(lab, tmp_path, port=BUSY_PORT)
    process = start_proxy(lab, tmp_path, BUSY_PORT)
    answers: list[tuple[float, float]] = []
    async with links_of_a_node(lab, access, ["wifi"]) as node:
        await node.until(lambda: node.told.opened)
        probe = probe_socket(
            lab, node, BUSY_PORT, lambda answer, received_at: answers.append((answer.time / 1e6, received_at))
        )
        os.kill(process.pid, signal.SIGSTOP)
        sent_at = time.monotonic()
        assert probe.send(node.association.next_probe_number(), int(sent_at * 1e6))
        await asyncio.sleep(0.2)
        os.kill(process.pid, signal.SIGCONT)
        await node.until(lambda: answers)
        probe.close()
    ((counted_from, received_at),) = answers
    assert received_at - sent_at > 0.2
    assert 0.005 < received_at - counted_from < 0.1
