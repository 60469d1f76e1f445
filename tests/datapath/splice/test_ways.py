"""The way to the next hop changes under a spliced session: other gateways, other hardware, no interface at all."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog.testing
from tests.datapath.bench import REPLY, Owner, eventually, read, write
from tests.datapath.networks import V4, over_veth, splice
from tests.datapath.splice.two_hosts import set_sysctl
from tests.datapath.three_hosts import SERVER_LINK, ThreeHosts, far_address, near_address

from msocks.datapath.interface import Attachment, Conduit
from msocks.datapath.splice.layout import Session
from msocks.datapath.splice.tables import MISSES_TELL
from msocks.protocol.leg import DatapathKind
from msocks.transport.reactor import Reactor

LINK = f"link{SERVER_LINK}"


class Talk:
    """A spliced session, whose ends are the test's."""

    def __init__(self, network: Any) -> None:
        self.mobile, leg = network.mobile_leg()
        self.server, server_leg = network.server_leg(leg)
        self.owner = Owner()
        self.conduit: Conduit = network.datapath.open(server_leg, self.owner, resumable=True)
        assert self.conduit.carriage_for(leg).kind is DatapathKind.SPLICE
        self.conduit.attach(Attachment(leg, 1, REPLY, 0, 0))

    async def echo(self, size: int = 100_000) -> None:
        block = os.urandom(size)
        for this, other in ((self.mobile, self.server), (self.server, self.mobile)):
            _, got = await asyncio.gather(write(this, block), read(other, size))
            assert got == block

    def close(self) -> None:
        self.conduit.close(reset=True)
        self.mobile.close()
        self.server.close()


@pytest.fixture
async def network() -> AsyncIterator[Any]:
    reactor = Reactor(asyncio.get_running_loop())
    with over_veth(splice, V4, V4)(reactor) as made:
        yield made
    reactor.close()


def hosts_of(network: Any) -> ThreeHosts:
    hosts: ThreeHosts = network._hosts
    return hosts


async def opened(network: Any) -> Talk:
    talk = Talk(network)
    assert await read(talk.mobile, len(REPLY)) == REPLY
    await talk.echo()
    return talk


def session_of(network: Any) -> Session:
    """The entry of the only one."""
    (slot,) = network.datapath.tables.taken_slots()
    session: Session = network.datapath.tables.session(slot)
    return session


def ask_the_kernel(network: Any) -> None:
    """The next packet of each leg takes the way of the kernel's routes and neighbours, as one does once a second."""
    tables = network.datapath.tables
    for slot in tables.taken_slots():
        for leg in tables.session(slot).legs:
            leg.path.fresh_until = 0


def dropped(network: Any) -> dict[str, int]:
    return {name: count for name, count in network.datapath.tables.drops().items() if count}


async def test_a_next_hop_whose_hardware_changes(network: Any):
    hosts = hosts_of(network)
    talk = await opened(network)
    hosts.server.ip(f"link set {LINK} down\nlink set {LINK} address 02:11:22:33:44:55\nlink set {LINK} up")
    # As a router that takes over an address does: unasked (RFC 5227 section 3). The proxy's kernel believes it.
    with hosts.server.entered():
        _announce(LINK, str(far_address(SERVER_LINK, V4)), bytes.fromhex("021122334455"))
    began = time.monotonic()
    await talk.echo()
    assert time.monotonic() - began < 4
    assert bytes(session_of(network).legs[0].path.next_hop) == bytes.fromhex("021122334455")
    talk.close()


async def test_a_next_hop_that_is_not_there_for_a_while(network: Any):
    """It has another hardware address, and does not say so: what goes to the old one arrives nowhere."""
    hosts = hosts_of(network)
    talk = await opened(network)
    hosts.server.ip(f"link set {LINK} down\nlink set {LINK} address 02:11:22:33:44:55 arp off\nlink set {LINK} up")
    hosts.proxy.ip(f"neighbour flush dev {LINK}")
    path = session_of(network).legs[0].path
    path.misses, path.fresh_until = MISSES_TELL, 0  # as when it has gone on for two seconds
    with structlog.testing.capture_logs() as log:
        echo = asyncio.get_running_loop().create_task(talk.echo())
        await eventually(lambda: said(log, "no_next_hop") == [LINK])
        assert not echo.done()
        hosts.server.ip(f"link set {LINK} arp on")
        await asyncio.wait_for(echo, 8)
    talk.close()


def add_gateways(hosts: ThreeHosts) -> dict[str, str]:
    """Two routers on the way to the server, by address and hardware; here they are the server's own two addresses."""
    hosts.proxy.ip(f"addr add 10.99.0.1/24 dev {LINK}")
    hosts.server.ip(
        f"link add other link {LINK} type macvlan mode bridge\nlink set other address 02:aa:aa:aa:aa:aa\n"
        f"link set other up\naddr add 10.99.0.2/24 dev other\n"
        f"link set {LINK} address 02:bb:bb:bb:bb:bb\naddr add 10.99.0.3/24 dev {LINK}"
    )
    with hosts.server.entered():
        for name in ("all", LINK, "other"):
            set_sysctl(f"net.ipv4.conf.{name}.arp_ignore", "1")
    hosts.proxy.ip(f"neighbour flush dev {LINK}")
    return {"10.99.0.2": "02aaaaaaaaaa", "10.99.0.3": "02bbbbbbbbbb"}


async def test_a_gateway_is_replaced_by_another(network: Any):
    hosts = hosts_of(network)
    gateways = add_gateways(hosts)
    target = far_address(SERVER_LINK, V4)
    talk = await opened(network)
    assert bytes(session_of(network).legs[0].path.next_hop).hex() == gateways["10.99.0.3"]
    hosts.proxy.ip(f"route add {target}/32 via 10.99.0.2 dev {LINK}")
    await asyncio.sleep(1.2)
    await talk.echo()
    await talk.echo()
    assert bytes(session_of(network).legs[0].path.next_hop).hex() == gateways["10.99.0.2"]
    assert dropped(network) == {}
    talk.close()


async def test_two_gateways_share_the_sessions(network: Any):
    hosts = hosts_of(network)
    gateways = add_gateways(hosts)
    ways = " ".join(f"nexthop via {address} dev {LINK}" for address in gateways)
    hosts.proxy.ip(f"route add {far_address(SERVER_LINK, V4)}/32 {ways}")
    set_sysctl("net.ipv4.fib_multipath_hash_policy", "1")
    talks = [await opened(network) for _ in range(16)]
    tables = network.datapath.tables
    hops = {bytes(tables.session(slot).legs[0].path.next_hop).hex() for slot in tables.taken_slots()}
    assert hops == set(gateways.values())
    ask_the_kernel(network)
    for talk in talks:
        await talk.echo()
        talk.close()
    assert dropped(network) == {}


async def test_an_interface_that_goes_and_comes_back(network: Any):
    hosts = hosts_of(network)
    talk, other = await opened(network), await opened(network)
    v4, far = near_address(SERVER_LINK, V4), far_address(SERVER_LINK, V4)
    with structlog.testing.capture_logs() as log:
        hosts.proxy.ip(f"link del {LINK}")
        echo = asyncio.get_running_loop().create_task(talk.echo())
        await asyncio.sleep(1)
    assert [(line["interface"], line["legs"]) for line in log if line["event"] == "interface_gone"] == [(LINK, 2)]
    assert said(log, "no_next_hop") == ["an interface that is gone"]
    hosts.proxy.ip(
        f"link add {LINK} index 177 type veth peer name {LINK} index 277 "
        f"netns /proc/{os.getpid()}/fd/{hosts.server.namespace}\n"
        f"link set {LINK} up\naddr add {v4}/24 dev {LINK}"
    )
    hosts.server.ip(f"link set {LINK} up\naddr add {far}/24 dev {LINK}")
    await asyncio.wait_for(echo, 8)
    await asyncio.wait_for(other.echo(), 8)
    talk.close()
    other.close()


def said(log: list[Any], event: str) -> list[str]:
    """What the log says is in trouble."""
    return [line["what"] for line in log if line["event"] == event]


def _announce(interface: str, address: str, hardware: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        ip = socket.inet_aton(address)
        arp = bytes.fromhex("0001080006040001") + hardware + ip + bytes(6) + ip
        sock.send(b"\xff" * 6 + hardware + b"\x08\x06" + arp)
