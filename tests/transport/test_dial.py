"""Connections through one link of several, in a lab with delays; the proxy is a listening socket there."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from tests.client.mobile_lab import on_host
from tests.own_network import own_network

from msocks.errors import LinkUnavailable
from msocks.link_monitor.monitor import LinkMonitor
from msocks.transport.dial import KEEP_ALIVE_IDLE_S, Dialer
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint
from msocks.values.link import Family, Link, LinkState
from msocks_lab import CutMode, Lab, LabConfig, LinkConfig

PORT = 7071


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    links = [
        LinkConfig("wifi", rtt_ms=5, rate_mbit=50),
        LinkConfig("lte", rtt_ms=50, rate_mbit=20),
        LinkConfig("four", rtt_ms=10, ipv6=False),
        LinkConfig("six", rtt_ms=10, ipv4=False),
    ]
    with Lab(LabConfig(links)) as built:
        yield built


class Host:
    """The mobile of the lab, as the test's own process, and listeners on the proxy."""

    def __init__(self, lab: Lab) -> None:
        loop = asyncio.get_running_loop()
        self.lab = lab
        self.reactor = Reactor(loop)
        self.monitor = LinkMonitor(loop)
        self.monitor.start()
        self.listeners: dict[int, socket.socket] = {}
        self._dialers: list[Dialer] = []
        with on_host(lab, "proxy"):
            for version, family, address in ((4, socket.AF_INET, lab.proxy.ipv4), (6, socket.AF_INET6, lab.proxy.ipv6)):
                listener = socket.create_server((address, PORT), family=family)
                listener.setblocking(False)
                self.listeners[version] = listener
        self.endpoints = [Endpoint.of(lab.proxy.ipv4, PORT), Endpoint.of(lab.proxy.ipv6, PORT)]

    def link(self, name: str) -> Link:
        return self.monitor.links()[name]

    def dialer(self, endpoints: Sequence[Endpoint] | None = None) -> Dialer:
        dialer = Dialer(self.reactor, self.endpoints if endpoints is None else endpoints)
        self._dialers.append(dialer)
        return dialer

    async def accept(self, version: int = 4) -> socket.socket:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listeners[version])
        return sock

    def close(self) -> None:
        for dialer in self._dialers:
            dialer.close()
        for listener in self.listeners.values():
            listener.close()
        self.monitor.close()
        self.reactor.close()


@pytest.fixture
async def host(lab: Lab) -> AsyncIterator[Host]:
    with on_host(lab, "mobile"):
        made = Host(lab)
        try:
            yield made
        finally:
            made.close()


def open_sockets() -> int:
    gc.collect()
    return sum(
        str(each.readlink()).startswith("socket:") for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )


async def test_both_directions_use_the_link_and_the_first_bytes_go_at_once(host: Host):
    before = {name: host.lab.link(name).counters() for name in ("wifi", "lte")}
    began = time.monotonic()
    sock = await host.dialer().dial(host.link("lte"), timeout_s=2, first=b"greeting and request")
    took = time.monotonic() - began
    peer = await host.accept()
    loop = asyncio.get_running_loop()
    with sock, peer:
        assert await loop.sock_recv(peer, 100) == b"greeting and request"
        assert time.monotonic() - began < 0.14, "half a round trip after the connection stood"
        await loop.sock_sendall(peer, bytes(100_000))
        received = 0
        while received < 100_000:
            received += len(await loop.sock_recv(sock, 65536))
        assert str(host.link("lte").addresses[0]) == sock.getsockname()[0] == peer.getpeername()[0]
    assert 0.05 <= took < 0.1, "one round trip"
    spent = {name: host.lab.link(name).counters().since(before[name]) for name in before}
    assert spent["lte"].bytes_down > 100_000
    assert spent["lte"].packets_up > 3
    assert spent["wifi"].bytes_down + spent["wifi"].bytes_up < 1000


async def test_the_socket_has_the_options_of_a_leg(host: Host):
    with await host.dialer().dial(host.link("wifi"), timeout_s=2) as sock:
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"wifi"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEP_ALIVE_IDLE_S


@pytest.mark.parametrize(("link", "version"), [("four", 4), ("six", 6)])
async def test_the_family_is_one_that_the_link_has(host: Host, link: str, version: int):
    dialer = host.dialer()
    with await dialer.dial(host.link(link), timeout_s=2) as sock:
        assert ip_address(sock.getpeername()[0]).version == version
    other = host.dialer(
        [each for each in host.endpoints if each.address is not None and each.address.version != version]
    )
    with pytest.raises(LinkUnavailable, match=f"no address and route for IPv{10 - version}"):
        await other.dial(host.link(link), timeout_s=2)


async def test_an_address_that_does_not_answer_costs_a_moment_once(host: Host):
    """The first address leads nowhere; after the first dial, what worked goes first, and its family with it."""
    nowhere = Endpoint.of("192.0.2.250", PORT)
    dialer = host.dialer([nowhere, *host.endpoints])
    times = []
    for _ in range(2):
        began = time.monotonic()
        with await dialer.dial(host.link("wifi"), timeout_s=2, rtt_ms=5) as sock:
            assert sock.getpeername()[0] == host.lab.proxy.ipv6
        times.append(time.monotonic() - began)
    assert 0.05 < times[0] < 0.12
    assert times[1] < 0.04
    assert dialer.candidates(host.link("wifi")) == [host.endpoints[1], nowhere, host.endpoints[0]]
    assert dialer.candidates(host.link("lte"))[0] == nowhere, "another link has its own memory"


async def test_an_address_that_refuses_costs_nothing(host: Host):
    dialer = host.dialer([Endpoint.of(host.lab.proxy.ipv4, 9), host.endpoints[1]])
    began = time.monotonic()
    with await dialer.dial(host.link("wifi"), timeout_s=2) as sock:
        assert sock.getpeername()[1] == PORT
    assert time.monotonic() - began < 0.05


async def test_when_all_refuse_the_error_tells_of_each(host: Host):
    first, second = Endpoint.of(host.lab.proxy.ipv4, 9), Endpoint.of(host.lab.proxy.ipv6, 9)
    with pytest.raises(ConnectionRefusedError) as caught:
        await host.dialer([first, second]).dial(host.link("wifi"), timeout_s=2)
    assert caught.value.__notes__ == [f"{first}: Connection refused"]


async def test_a_lost_syn_does_not_cost_a_second(host: Host):
    """Linux sends the first retransmission after 1 s; the race does not wait for it."""
    wifi = host.lab.link("wifi")
    dialer = host.dialer(host.endpoints[:1])
    wifi.cut(CutMode.SILENT)
    began = time.monotonic()
    dial = asyncio.create_task(dialer.dial(host.link("wifi"), timeout_s=3, rtt_ms=5))
    await asyncio.sleep(0.02)
    await asyncio.to_thread(wifi.restore)
    assert time.monotonic() - began < 0.15
    with await dial:
        assert time.monotonic() - began < 0.3


async def test_a_link_that_is_silent_is_given_up_in_time_and_leaves_nothing(host: Host):
    dialer = host.dialer()
    wifi = host.lab.link("wifi")
    await asyncio.to_thread(wifi.cut, CutMode.SILENT)
    before = open_sockets()
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"did not answer over wifi in 0\.4 s"):
            await dialer.dial(host.link("wifi"), timeout_s=0.4)
        assert 0.4 <= time.monotonic() - began < 0.5
        dial = asyncio.create_task(dialer.dial(host.link("wifi"), timeout_s=5, rtt_ms=5))
        await asyncio.sleep(0.2)
        assert open_sockets() > before
        dial.cancel()
        await asyncio.wait([dial])
        assert open_sockets() == before
    finally:
        await asyncio.to_thread(wifi.restore)


async def test_cancelled_in_the_moment_of_success_it_leaves_nothing(host: Host):
    before = open_sockets()
    dialer = host.dialer()
    for pause in (0.0, 0.003, 0.005, 0.0055, 0.006, 0.0065, 0.007, 0.01):
        dial = asyncio.create_task(dialer.dial(host.link("wifi"), timeout_s=2))
        await asyncio.sleep(pause)
        if dial.cancel():
            await asyncio.wait([dial])
        if not dial.cancelled():
            dial.result().close()
    assert open_sockets() == before


async def test_a_link_that_is_gone_says_so(host: Host):
    dialer = host.dialer()
    with pytest.raises(LinkUnavailable, match="wifi cannot be used: it is down"):
        await dialer.dial(replace(host.link("wifi"), state=LinkState.DOWN), timeout_s=2)
    with pytest.raises(LinkUnavailable) as no_device:
        await dialer.dial(replace(host.link("wifi"), name="wlan9"), timeout_s=2)
    assert isinstance(no_device.value.__cause__, OSError)
    assert no_device.value.__cause__.errno == errno.ENODEV
    with pytest.raises(LinkUnavailable) as no_address:
        await dialer.dial(replace(host.link("four"), addresses=(ip_address("10.99.0.1"),)), timeout_s=2)
    assert isinstance(no_address.value.__cause__, OSError)
    assert no_address.value.__cause__.errno == errno.EADDRNOTAVAIL


async def test_a_name_is_looked_up_and_then_kept(monkeypatch: pytest.MonkeyPatch):
    """In a network of its own, where `localhost` is all that resolves."""
    loop = asyncio.get_running_loop()
    with own_network(), socket.create_server(("127.0.0.1", PORT)):
        reactor = Reactor(loop)
        lo = Link("lo", 1, LinkState.UP, (ip_address("127.0.0.1"),), frozenset({Family.V4}))
        dialer = Dialer(reactor, [Endpoint.of("localhost", PORT)])
        changed: list[int] = []
        dialer.addresses.on_change(lambda: changed.append(1))
        try:
            assert dialer.candidates(lo) == []
            with await dialer.dial(lo, timeout_s=5) as sock:
                assert sock.getpeername() == ("127.0.0.1", PORT)
            assert changed == [1]

            async def fails(*_arguments: object, **_keywords: object) -> list[object]:
                raise socket.gaierror(socket.EAI_AGAIN, "no name server")

            monkeypatch.setattr(loop, "getaddrinfo", fails)
            monkeypatch.setattr("msocks.transport.proxy_addresses._FRESH_S", 0.0)
            dialer.resolve_soon()
            await asyncio.sleep(0.01)
            (await dialer.dial(lo, timeout_s=5)).close()
            assert changed == [1]
            unknown = Dialer(reactor, [Endpoint.of("proxy.invalid", PORT)])
            with pytest.raises(LinkUnavailable, match="the proxy's name does not resolve: no name server"):
                await unknown.dial(lo, timeout_s=5)
        finally:
            dialer.close()
            reactor.close()


def test_needs_no_privilege(lab: Lab):
    """As an ordinary user without capabilities; netlink, SO_BINDTODEVICE and all."""
    with on_host(lab, "proxy"), socket.create_server((lab.proxy.ipv4, PORT + 1)):
        program = (
            "import asyncio, sys\n"
            "from msocks.link_monitor.monitor import LinkMonitor\n"
            "from msocks.transport.dial import Dialer\n"
            "from msocks.transport.reactor import Reactor\n"
            "from msocks.values.endpoint import Endpoint\n"
            "from msocks.values.link import Family\n"
            "async def main():\n"
            "    loop = asyncio.get_running_loop()\n"
            "    reactor, monitor = Reactor(loop), LinkMonitor(loop)\n"
            "    monitor.start()\n"
            "    dialer = Dialer(reactor, [Endpoint.parse(sys.argv[1])])\n"
            "    for link in monitor.links().values():\n"
            "        if link.reaches(Family.V4):\n"
            "            with await dialer.dial(link, timeout_s=5) as sock:\n"
            "                print(link.name, sock.getsockname()[0])\n"
            "    monitor.close()\n"
            "    reactor.close()\n"
            "asyncio.run(main())\n"
        )
        argv = [sys.executable, "-c", program, f"{lab.proxy.ipv4}:{PORT + 1}"]
        output = lab.mobile.run(argv, unprivileged=True).stdout
    assert [line.split()[0] for line in output.splitlines()] == ["wifi", "lte", "four"]
    assert len({line.split()[1] for line in output.splitlines()}) == 3
