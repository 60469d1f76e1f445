"""The benches themselves: the hosts are three, the families are those that are asked for, the counts are compared."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from tests.datapath.network_counts import unequal
from tests.datapath.networks import V4, V6, over_veth, relay
from tests.datapath.three_hosts import (
    MOBILE_LINKS,
    SERVER_LINK,
    far_address,
    near_address,
    three_hosts,
)

from msocks.transport.reactor import Reactor


def namespaces() -> list[Path]:
    return [Path(f"/proc/thread-self/ns/{kind}").readlink() for kind in ("net", "mnt")]


def test_the_thread_is_on_the_proxy_and_comes_back():
    before = namespaces()
    with three_hosts() as hosts:
        proxy = namespaces()
        assert not set(proxy) & set(before)
        assert list(Path("/proc/sys/net/ipv4/conf").glob("link*"))
        for host in (hosts.mobile, hosts.server):
            with host.entered():
                assert namespaces()[0] not in (proxy[0], before[0])
        assert namespaces() == proxy
    assert namespaces() == before


@pytest.mark.parametrize("mobile_family", [V4, V6])
@pytest.mark.parametrize("server_family", [V4, V6])
async def test_legs_cross_the_links_in_the_families_asked_for(
    mobile_family: socket.AddressFamily, server_family: socket.AddressFamily
):
    reactor = Reactor(asyncio.get_running_loop())
    with over_veth(relay, mobile_family, server_family)(reactor) as network, contextlib.ExitStack() as stack:
        for link in (*MOBILE_LINKS, MOBILE_LINKS[0]):
            mobile, leg = map(stack.enter_context, network.mobile_leg())
            assert mobile.getsockname()[0] == leg.getpeername()[0] == str(far_address(link, mobile_family))
            assert mobile.getpeername()[0] == str(near_address(link, mobile_family))
        server, server_leg = map(stack.enter_context, network.server_leg(leg))
        assert server.getsockname()[0] == server_leg.getpeername()[0] == str(far_address(SERVER_LINK, server_family))
        assert server.getpeername()[0] == str(near_address(SERVER_LINK, server_family))
        for sock in (mobile, leg, server, server_leg):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"cubic"
    reactor.close()


def test_networks_that_took_part_must_pass_the_same_number():
    assert unequal({"one": 3, "two": 3, "another": 1}, ["one", "two"]) == ""
    assert unequal({"one": 3}, ["one", "two"]) == ""
    assert "one: 3, two: 0" in unequal({"one": 3, "two": 0}, ["one", "two"])
