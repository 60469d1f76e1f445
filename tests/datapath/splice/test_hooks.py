"""The programs hang on every interface, stay there, and are put back: by tcx, and by the clsact qdisc."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.datapath.splice.loading import loaded, own_host
from tests.own_network import OwnNetwork

from msocks.datapath.splice import libbpf
from msocks.datapath.splice._libbpf import ffi, lib
from msocks.datapath.splice.hooks import Hooks, remove_filters
from msocks.datapath.splice.loader import SpliceProgram
from msocks.link_monitor.route_socket import Interface, RouteSocket
from msocks.transport.reactor import Reactor

TCX_INGRESS = 46
DIRECTIONS = ("ingress", "egress")


class Host:
    """One network for the whole module: loading takes a second."""

    def __init__(self, network: OwnNetwork, program: SpliceProgram) -> None:
        self.network = network
        self.program = program
        self.links = program.pin_directory / "links"

    def pins(self, interface: str) -> list[Path]:
        return [self.links / f"{socket.if_nametoindex(interface)}-{direction}" for direction in DIRECTIONS]

    def attached(self, interface: str) -> list[int]:
        """Ids of the programs of the pinned links."""
        ids = []
        for pin in self.pins(interface):
            link = libbpf.open_pin(pin)
            program, index = libbpf.link_of(link)
            os.close(link)
            assert index == socket.if_nametoindex(interface)
            ids.append(program)
        return ids

    def wanted(self, suffix: str = "") -> list[int]:
        return [libbpf.program_id(self.program.program(f"splice_{name}{suffix}")) for name in DIRECTIONS]


@pytest.fixture(scope="module")
def loaded_host() -> Iterator[Host]:
    with own_host() as (network, pins), loaded(pins) as program:
        yield Host(network, program)


@pytest.fixture
def host(loaded_host: Host) -> Iterator[Host]:
    """With one interface, `uplink`, and nothing attached."""
    loaded_host.network.add_veth("uplink")
    yield loaded_host
    loaded_host.network.ip("link delete uplink")
    for pin in loaded_host.links.iterdir():
        pin.unlink()


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    reactor = Reactor(asyncio.get_running_loop())
    yield reactor
    reactor.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)  # the kernel tells nobody of a pin


def filters(interface: str, direction: str) -> str:
    command = ["tc", "filter", "show", "dev", interface, direction]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


def hanging(index: int) -> list[int]:
    """Ids of the programs at an interface's ingress, by tcx, in their order."""
    ids, count = ffi.new("uint32_t[4]"), ffi.new("uint32_t *", 4)
    assert lib.bpf_prog_query(index, TCX_INGRESS, 0, ffi.NULL, ids, count) == 0
    return list(ids[0 : count[0]])


@contextlib.contextmanager
def attached(program: SpliceProgram, *, clsact: bool = False) -> Iterator[Hooks]:
    hooks = Hooks(program, clsact=clsact)
    try:
        hooks.attach_all()
        yield hooks
    finally:
        hooks.close()


def test_every_interface_but_the_loopback_has_the_programs(host: Host):
    with attached(host.program) as hooks:
        assert host.attached("uplink") == host.attached("peer-uplink") == host.wanted()
        assert {pin.name for pin in host.links.iterdir()} == {
            pin.name for interface in ("uplink", "peer-uplink") for pin in host.pins(interface)
        }
        hooks.detach_all()
        assert list(host.links.iterdir()) == []


def test_an_interface_without_a_link_layer_header_has_programs_of_its_own(host: Host):
    host.network.ip("tuntap add tunnel mode tun")
    with attached(host.program):
        assert host.attached("tunnel") == host.wanted("_l3")
    host.network.ip("link delete tunnel")


def test_what_is_attached_outlives_who_did_it_and_is_taken_over_in_place(host: Host):
    with attached(host.program):
        pass
    links = [pin.stat().st_ino for pin in host.pins("uplink")]
    with attached(host.program) as second:
        assert host.attached("uplink") == host.wanted()
        assert [pin.stat().st_ino for pin in host.pins("uplink")] == links, "detached in between"
        assert second.verify() == []


def test_pins_of_interfaces_that_are_gone_are_cleared_away(host: Host):
    host.network.add_veth("second")
    with attached(host.program):
        gone = host.pins("second")
    host.network.ip("link delete second")
    assert all(pin.exists() for pin in gone)
    with attached(host.program):
        assert not any(pin.exists() for pin in gone)


@pytest.mark.parametrize("clsact", [False, True], ids=["tcx", "clsact"])
def test_an_interface_may_go_while_the_programs_are_being_attached(
    host: Host, monkeypatch: pytest.MonkeyPatch, clsact: bool
):
    host.network.add_veth("fleeting")
    listed = RouteSocket.interfaces

    def list_then_delete(self: RouteSocket) -> list[Interface]:
        found = listed(self)
        host.network.ip("link delete fleeting")
        return found

    monkeypatch.setattr(RouteSocket, "interfaces", list_then_delete)
    with attached(host.program, clsact=clsact) as hooks:
        assert hooks.verify() == []
        if not clsact:
            assert host.attached("uplink") == host.wanted()
        hooks.detach_all()


async def test_what_happened_while_events_were_lost_is_made_up_for(host: Host, reactor: Reactor):
    host.network.add_veth("goes")
    with attached(host.program) as hooks:
        gone = host.pins("goes")
        assert hooks._socket is not None
        with socket.socket(fileno=os.dup(hooks._socket.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least: one event or two
        for _ in range(20):
            host.network.ip("link set uplink mtu 1400\nlink set uplink mtu 1500")
        host.network.ip("link delete goes")
        host.network.add_veth("comes")
        hooks.follow(reactor, lambda _index: 0)
        await until(lambda: all(pin.exists() for pin in host.pins("comes")))
        assert host.attached("comes") == host.wanted()
        assert not any(pin.exists() for pin in gone)
        host.network.ip("link delete comes")


@pytest.mark.parametrize("cut", [0, 1], ids=DIRECTIONS)
def test_a_link_that_somebody_cut_is_mended_and_the_other_one_left_alone(host: Host, cut: int):
    with attached(host.program) as hooks:
        for _ in range(20):
            other = host.pins("uplink")[1 - cut].stat().st_ino
            link = libbpf.open_pin(host.pins("uplink")[cut])
            libbpf.cut_link(link)
            os.close(link)
            assert hooks.verify() == ["uplink"]
            assert hooks.verify() == []
            assert host.attached("uplink") == host.wanted()
            assert host.pins("uplink")[1 - cut].stat().st_ino == other


def test_what_was_detached_is_gone_at_once_and_can_be_attached_again(host: Host):
    index = socket.if_nametoindex("uplink")
    with attached(host.program) as hooks:
        for _ in range(20):
            assert hanging(index) == host.wanted()[:1]
            hooks.detach_all()
            assert hanging(index) == []
            hooks.attach_all()
        assert host.attached("uplink") == host.wanted()


async def test_a_pin_that_somebody_removed_is_made_again(host: Host):
    """The kernel lets go of its link some time later; until then the same program cannot be attached."""
    with attached(host.program) as hooks:
        host.pins("uplink")[0].unlink()
        await until(lambda: hooks.verify() == ["uplink"])
        assert host.attached("uplink") == host.wanted()


def test_the_splice_comes_before_what_others_have_attached(host: Host):
    """Theirs may let a packet pass for good (TC_ACT_OK), which ends its way through the hook."""
    index = socket.if_nametoindex("uplink")
    other = host.program.program("splice_ingress_l3")
    link = lib.msocks_link_create(other, index, TCX_INGRESS, 0)
    with attached(host.program):
        assert hanging(index) == [host.wanted()[0], libbpf.program_id(other)]
    os.close(link)


def test_the_clsact_qdisc_serves_where_there_is_no_tcx(host: Host):
    with attached(host.program, clsact=True) as hooks:
        for direction in DIRECTIONS:
            shown = filters("uplink", direction)
            assert f"splice_{direction}" in shown
            assert "direct-action" in shown
        assert list(host.links.iterdir()) == []
    # They outlive who attached them, and are taken over.
    with attached(host.program, clsact=True) as hooks:
        assert filters("uplink", "ingress").count("direct-action") == 1
        assert hooks.verify() == []
        subprocess.run(["tc", "qdisc", "delete", "dev", "uplink", "clsact"], check=True, timeout=10)
        assert hooks.verify() == ["uplink"]
        assert "splice_egress" in filters("uplink", "egress")
        hooks.detach_all()
        assert "splice" not in filters("uplink", "ingress") + filters("uplink", "egress")


@pytest.mark.parametrize("clsact", [False, True], ids=["tcx", "clsact"])
async def test_an_interface_that_comes_is_attached_at_once_and_forgotten_when_it_goes(
    host: Host, reactor: Reactor, clsact: bool
):
    gone: list[int] = []

    def forget(index: int) -> int:
        gone.append(index)
        return 0

    with attached(host.program, clsact=clsact) as hooks:
        hooks.follow(reactor, forget)
        host.network.add_veth("late")
        if clsact:
            await until(lambda: "splice_egress" in filters("late", "egress"))
            index = socket.if_nametoindex("late")
            host.network.ip("link delete late")
            await until(lambda: index in gone)
            return
        pins = host.pins("late")
        await until(lambda: all(pin.exists() for pin in pins))
        assert host.attached("late") == host.wanted()
        host.network.ip("link delete late")
        await until(lambda: not any(pin.exists() for pin in pins))
        assert hooks.verify() == []


def test_two_proxies_have_filters_of_their_own_on_one_interface(host: Host):
    """A second one with the clsact qdisc: neither replaces the other's, nor takes it away."""
    with loaded(host.program.pin_directory.with_name("neighbour")) as neighbour:
        with attached(host.program, clsact=True) as one, attached(neighbour, clsact=True) as other:
            assert [filters("uplink", direction).count("direct-action") for direction in DIRECTIONS] == [2, 2]
            other.detach_all()
            assert one.verify() == []
            other.attach_all()
            remove_filters(host.program.pin_directory, host.wanted())
            assert sorted(one.verify()) == ["peer-uplink", "uplink"]
            assert other.verify() == []
            one.detach_all()
            assert other.verify() == []
            other.detach_all()
        neighbour.unload()
