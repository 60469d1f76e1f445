"""Legs over devices without a link layer: the kernel's own packets teach the way there, too."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.datapath.networks import V4, V6, over_veth, splice
from tests.datapath.splice.test_ways import dropped, opened
from tests.datapath.splice.tunnels import tunnel
from tests.datapath.three_hosts import MOBILE_LINKS, SERVER_LINK, ThreeHosts

from msocks.transport.reactor import Reactor


@pytest.mark.parametrize(
    "legs", ["mobile", pytest.param("server", marks=pytest.mark.long), pytest.param("both", marks=pytest.mark.long)]
)
async def test_legs_through_tunnels(legs: str):
    with contextlib.ExitStack() as stack:

        def lay_out(hosts: ThreeHosts) -> None:
            if legs != "server":
                stack.enter_context(tunnel(hosts.proxy, hosts.mobile, MOBILE_LINKS[0]))
            if legs != "mobile":
                stack.enter_context(tunnel(hosts.proxy, hosts.server, SERVER_LINK))

        reactor = Reactor(asyncio.get_running_loop())
        with over_veth(splice, V4, V6, lay_out)(reactor) as network:
            talk = await opened(network)
            await talk.echo(1_000_000)
            assert dropped(network) == {}
            talk.close()
        reactor.close()
