"""Legs that are VLANs: a frame meets the programs twice, and its tag tells where it is the splice's affair."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.datapath.networks import V4, V6, over_veth, splice
from tests.datapath.splice.test_ways import ask_the_kernel, dropped, opened
from tests.datapath.splice.vlans import make_vlan
from tests.datapath.three_hosts import MOBILE_LINKS, SERVER_LINK, ThreeHosts

from msocks.transport.reactor import Reactor


@pytest.mark.parametrize(
    "legs", [pytest.param("mobile", marks=pytest.mark.long), pytest.param("server", marks=pytest.mark.long), "both"]
)
async def test_legs_in_vlans(tmp_path: Path, legs: str):
    """Every frame has its link's tag, or it is dropped at either end; trains of segments too."""

    def lay_out(hosts: ThreeHosts) -> None:
        if legs != "server":
            make_vlan(hosts.proxy, hosts.mobile, MOBILE_LINKS[0], 5, tmp_path)
        if legs != "mobile":
            make_vlan(hosts.proxy, hosts.server, SERVER_LINK, 6, tmp_path)

    reactor = Reactor(asyncio.get_running_loop())
    with over_veth(splice, V4, V6, lay_out)(reactor) as network:
        talk = await opened(network)
        ask_the_kernel(network)
        await talk.echo(1_000_000)
        assert dropped(network) == {}
        talk.close()
    reactor.close()
