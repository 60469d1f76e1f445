from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.datapath.bench import Bench, Owner
from tests.datapath.networks import NETWORKS, MakeNetwork

from msocks.transport.reactor import Reactor


@pytest.fixture(params=NETWORKS, ids=lambda make: make.__name__)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """A session whose server is connected, and whose first leg waits to be attached, on each datapath."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    reactor = Reactor(asyncio.get_running_loop())
    make: MakeNetwork = request.param
    with make(reactor) as network:
        waiting = network.mobile_leg()
        server, server_leg = network.server_leg(waiting[1])
        owner = Owner()
        conduit = network.datapath.open(server_leg, owner, resumable=True)
        made = Bench(network, conduit, owner, server, waiting)
        yield made
        conduit.close(reset=True)
        for sock in (server, *(made.waiting or ()), *made.sockets):
            sock.close()
    reactor.close()
    assert not faults, "a callback raised what nobody caught"
