"""The monitor before a real kernel: each test in a network namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop
from tests.own_network import OwnNetwork, own_network

from msocks.link_monitor.monitor import LinkMonitor
from msocks.link_monitor.table import LinkChange
from msocks.values.link import Family, Link, LinkState

WIFI_ADDRESS = "address add 192.0.2.7/24 dev wifi"
WIFI_ROUTE = "route add default via 192.0.2.1 dev wifi metric 600"


@pytest.fixture
def network() -> Iterator[OwnNetwork]:
    with own_network() as network:
        yield network


class Seen:
    """What a subscriber was told."""

    def __init__(self, monitor: LinkMonitor) -> None:
        self.monitor = monitor
        self.calls: list[Sequence[LinkChange]] = []
        self._called = asyncio.Event()
        monitor.subscribe(self._on_changes)

    def _on_changes(self, changes: Sequence[LinkChange]) -> None:
        self.calls.append(changes)
        self._called.set()

    async def until(self, condition: Callable[[dict[str, Link]], bool], timeout_s: float = 2.0) -> None:
        """Wait for a call after which `condition` of the links holds; there is no other way to learn of a change."""
        async with asyncio.timeout(timeout_s):
            while not condition(dict(self.monitor.links())):
                self._called.clear()
                await self._called.wait()


def is_up(name: str) -> Callable[[dict[str, Link]], bool]:
    return lambda links: name in links and links[name].state is LinkState.UP


def is_down(name: str) -> Callable[[dict[str, Link]], bool]:
    return lambda links: name in links and links[name].state is LinkState.DOWN


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wifi_is_up(network: OwnNetwork) -> None:
    network.add_veth("wifi")
    network.ip(f"{WIFI_ADDRESS}\n{WIFI_ROUTE}")


@contextlib.contextmanager
def started(names: Sequence[str] | None = None) -> Iterator[Seen]:
    monitor = LinkMonitor(asyncio.get_running_loop(), names)
    monitor.start()
    try:
        yield Seen(monitor)
    finally:
        monitor.close()


async def test_a_link_that_is_there_is_known_at_once(network: OwnNetwork):
    wifi_is_up(network)
    network.ip("address add 2001:db8::7/64 dev wifi nodad\nroute add default via 2001:db8::1 dev wifi\n")
    with started() as seen:
        link = seen.monitor.links()["wifi"]
        assert link.state is LinkState.UP
        assert link.addresses == (ip_address("192.0.2.7"), ip_address("2001:db8::7"))
        assert link.families == (Family.V4, Family.V6)
        assert link.mtu == 1500
        assert list(seen.monitor.links()) == ["wifi"]


async def test_starts_without_any_link_and_sees_one_come(network: OwnNetwork):
    with started() as seen:
        assert dict(seen.monitor.links()) == {}
        network.add_veth("wifi")
        network.ip(WIFI_ADDRESS)
        await asyncio.sleep(0.05)
        assert dict(seen.monitor.links()) == {}, "no route leads over it yet"
        network.ip(WIFI_ROUTE)
        await seen.until(is_up("wifi"))


async def test_a_named_link_is_shown_down_as_soon_as_its_interface_exists(network: OwnNetwork):
    with started(["wifi", "lte"]) as seen:
        network.add_veth("lte")
        await seen.until(is_down("lte"))
        wifi_is_up(network)
        await seen.until(is_up("wifi"))
        assert list(seen.monitor.links()) == ["wifi", "lte"]


@pytest.mark.parametrize("command", ["link set peer-wifi down", "link set wifi down"], ids=["carrier", "administrator"])
async def test_a_lost_carrier_is_told_within_milliseconds(network: OwnNetwork, command: str):
    wifi_is_up(network)
    with started() as seen:
        network.ip(command)
        began = time.monotonic()
        await seen.until(is_down("wifi"))
        assert time.monotonic() - began < 0.05


async def test_set_down_and_up_again_a_link_needs_its_route_anew(network: OwnNetwork):
    """The kernel drops the IPv4 routes of an interface that is set down, and says nothing of it."""
    wifi_is_up(network)
    with started() as seen:
        network.ip("link set wifi down")
        await seen.until(is_down("wifi"))
        network.ip("link set wifi up")
        await asyncio.sleep(0.1)
        link = seen.monitor.links()["wifi"]
        assert (link.state, link.routes, link.addresses) == (LinkState.DOWN, frozenset(), (ip_address("192.0.2.7"),))
        network.ip(WIFI_ROUTE)
        await seen.until(is_up("wifi"))


async def test_the_last_address_takes_the_routes_with_it(network: OwnNetwork):
    """Again without a word of the kernel."""
    wifi_is_up(network)
    with started() as seen:
        network.ip("address delete 192.0.2.7/24 dev wifi")
        await seen.until(is_down("wifi"))
        network.ip(WIFI_ADDRESS)
        await asyncio.sleep(0.1)
        assert is_down("wifi")(dict(seen.monitor.links()))


async def test_another_address_on_the_same_interface_is_a_change(network: OwnNetwork):
    wifi_is_up(network)
    with started() as seen:
        before = seen.monitor.links()["wifi"]
        network.ip(
            "address add 198.51.100.9/24 dev wifi\n"
            "route replace default via 198.51.100.1 dev wifi metric 600\n"
            "address delete 192.0.2.7/24 dev wifi"
        )
        await seen.until(lambda links: links["wifi"].addresses == (ip_address("198.51.100.9"),))
        assert seen.monitor.links()["wifi"].state is LinkState.UP
        assert seen.calls[0][0].before == before


async def test_another_metric_is_another_order_of_preference(network: OwnNetwork):
    wifi_is_up(network)
    network.add_veth("lte")
    network.ip("address add 198.51.100.7/24 dev lte\nroute add default via 198.51.100.1 dev lte metric 700")
    with started() as seen:
        assert list(seen.monitor.links()) == ["wifi", "lte"]
        way = "default via 192.0.2.1 dev wifi"
        network.ip(f"route add {way} metric 800\nroute delete {way} metric 600")
        await seen.until(lambda links: list(links) == ["lte", "wifi"])
        assert seen.calls == [[]]


async def test_a_lost_route_makes_a_link_useless(network: OwnNetwork):
    wifi_is_up(network)
    with started() as seen:
        network.ip("route delete default")
        await seen.until(is_down("wifi"))


async def test_a_route_to_the_proxy_is_enough(network: OwnNetwork):
    network.add_veth("lab")
    network.ip("address add 192.0.2.7/24 dev lab")
    with started() as seen:
        assert dict(seen.monitor.links()) == {}
        seen.monitor.set_targets([ip_address("192.0.2.99")])
        assert is_up("lab")(dict(seen.monitor.links()))
        assert len(seen.calls) == 1


async def test_multipath_and_other_tables_count(network: OwnNetwork):
    network.add_veth("wifi")
    network.add_veth("lte")
    network.add_veth("dock")
    network.ip(
        "address add 192.0.2.7/24 dev wifi\naddress add 198.51.100.7/24 dev lte\naddress add 203.0.113.7/24 dev dock\n"
        "route add default nexthop via 192.0.2.1 dev wifi nexthop via 198.51.100.1 dev lte\n"
        "route add default via 203.0.113.1 dev dock table 77\nroute add unreachable default metric 9999"
    )
    with started() as seen:
        assert {name for name, link in seen.monitor.links().items() if link.state is LinkState.UP} == {
            "wifi",
            "lte",
            "dock",
        }


async def test_an_interface_that_is_deleted_is_gone_and_comes_back_as_a_new_one(network: OwnNetwork):
    wifi_is_up(network)
    with started() as seen:
        index = seen.monitor.links()["wifi"].index
        network.ip("link delete wifi")
        await seen.until(lambda links: not links)
        assert seen.calls[-1][-1].after is None
        network.ip("link add other type veth peer name peer-other")
        wifi_is_up(network)
        await seen.until(is_up("wifi"))
        assert seen.monitor.links()["wifi"].index != index


async def test_a_bridge_that_lets_go_of_a_link_does_not_delete_it(network: OwnNetwork):
    """RTM_DELLINK of the family AF_BRIDGE is about the port, not about the interface."""
    wifi_is_up(network)
    network.ip("link add br0 type bridge\nlink set wifi master br0")
    with started() as seen:
        network.ip("link set wifi nomaster")
        network.ip("link set wifi mtu 1400")
        await seen.until(lambda links: links["wifi"].mtu == 1400)


async def test_a_burst_of_events_is_one_change(network: OwnNetwork):
    """Read in one go, hundreds of events that end where they began, but for one."""
    wifi_is_up(network)
    with started() as seen:
        flapping = "\n".join(
            f"address add 10.0.{n}.1/24 dev wifi\naddress delete 10.0.{n}.1/24 dev wifi" for n in range(150)
        )
        network.ip(
            f"{flapping}\naddress add 192.0.2.8/24 dev wifi"
        )  # this blocks the loop, so all are there afterwards
        await seen.until(lambda links: len(links["wifi"].addresses) == 2)
        assert len(seen.calls) == 1


async def test_lost_events_are_made_up_for(network: OwnNetwork, monkeypatch: pytest.MonkeyPatch):
    """With a small receive buffer the kernel drops events and says ENOBUFS."""
    monkeypatch.setattr("msocks.link_monitor.route_socket._RECEIVE_BUFFER_BYTES", 4096)
    wifi_is_up(network)
    with started() as seen:
        flapping = "\n".join(
            f"address add 10.0.{n}.1/24 dev wifi\naddress delete 10.0.{n}.1/24 dev wifi" for n in range(150)
        )
        network.ip(f"{flapping}\naddress delete 192.0.2.7/24 dev wifi\nlink set wifi mtu 1400")
        await seen.until(lambda links: links["wifi"].mtu == 1400 and not links["wifi"].addresses)
        assert is_down("wifi")(dict(seen.monitor.links()))
        network.add_veth("lte")
        network.ip("address add 10.9.9.9/24 dev lte\nroute add default via 10.9.9.1 dev lte")
        await seen.until(is_up("lte"))


async def test_whoever_has_unsubscribed_is_told_nothing(network: OwnNetwork):
    with started(["wifi"]) as seen:
        told: list[Sequence[LinkChange]] = []
        unsubscribe = seen.monitor.subscribe(told.append)
        unsubscribe()
        unsubscribe()
        wifi_is_up(network)
        await seen.until(is_up("wifi"))
        assert not told


async def test_nothing_is_told_after_close_and_the_descriptor_is_given_back(network: OwnNetwork):
    descriptors = open_descriptors()
    with started(["wifi"]) as seen:
        seen.monitor.close()
        seen.monitor.recheck("wifi")
        wifi_is_up(network)
        await asyncio.sleep(0.05)
        assert not seen.calls
    assert open_descriptors() == descriptors


async def test_recheck_tells_of_a_carrier_whose_loss_the_kernel_still_holds_back(network: OwnNetwork):
    """Linkwatch reports one carrier change a second of a device without a lower one, as a TUN device is."""
    tun, carrier = os.open("/dev/net/tun", os.O_RDWR), 0x400454E2  # TUNSETCARRIER
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH14x", b"tun0", 0x1001))  # TUNSETIFF: IFF_TUN, IFF_NO_PI
    network.ip("link set tun0 up\naddress add 192.0.2.7/24 dev tun0\nroute add default dev tun0")
    with started() as seen:
        fcntl.ioctl(tun, carrier, struct.pack("i", 0))
        await seen.until(is_down("tun0"))
        fcntl.ioctl(tun, carrier, struct.pack("i", 1))
        await seen.until(is_up("tun0"))
        fcntl.ioctl(tun, carrier, struct.pack("i", 0))
        await asyncio.sleep(0.1)
        assert is_up("tun0")(dict(seen.monitor.links())), "the kernel told at once: recheck() has become superfluous"
        seen.monitor.recheck("tun0")
        assert is_down("tun0")(dict(seen.monitor.links()))
        seen.monitor.recheck("nonsense")
        os.close(tun)


def test_runs_on_uvloop(network: OwnNetwork):
    async def main() -> None:
        wifi_is_up(network)
        with started() as seen:
            network.ip("link set peer-wifi down")
            await seen.until(is_down("wifi"))

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())


def test_needs_no_privilege(network: OwnNetwork):
    """As nobody, with no capability at all."""
    wifi_is_up(network)
    program = (
        "import asyncio\n"
        "from msocks.link_monitor.monitor import LinkMonitor\n"
        "async def main():\n"
        "    monitor = LinkMonitor(asyncio.get_running_loop())\n"
        "    monitor.start()\n"
        "    print(*(f'{link.name} {link.state}' for link in monitor.links().values()), flush=True)\n"
        "    told = asyncio.Event()\n"
        "    monitor.subscribe(lambda changes: (print(changes[0].after.state, flush=True), told.set()))\n"
        "    await told.wait()\n"
        "asyncio.run(main())\n"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    with subprocess.Popen(
        [*command, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd="/"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "wifi up\n"
        network.ip("link set wifi down")
        assert process.communicate(timeout=10)[0] == "down\n"
    assert process.returncode == 0
