"""A real proxy in the test's event loop, real servers and real mobile nodes, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.proxy.mobile_node import MobileNode, Server, server_on
from tests.proxy.udp_server import UdpServer

from msocks.proxy.config import DatapathChoice, ProxyConfig
from msocks.proxy.server import Proxy
from msocks.store.administration import add_user
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint

ANY_PORT = Endpoint.parse("127.0.0.1:0")
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@dataclass
class RunningProxy:
    """A proxy and what belongs to it."""

    proxy: Proxy
    state: Path
    log: list[Any]
    nodes: list[MobileNode] = field(default_factory=list)

    @property
    def endpoint(self) -> Endpoint:
        return self.proxy.endpoints[0]

    async def add_user(self, name: str, **limits: int) -> AccessLink:
        # The command waits for the proxy, which runs in this loop.
        return await asyncio.to_thread(add_user, self.state, name, [self.endpoint], **limits)

    async def node(self, user: str = "alice", link: AccessLink | None = None) -> MobileNode:
        """A mobile node of a user, with a control channel; the user is added where no link is given."""
        node = MobileNode(self.endpoint, link or await self.add_user(user))
        self.nodes.append(node)
        await node.associate()
        return node

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.log if entry["event"] == name]


StartProxy = Callable[..., Awaitable[RunningProxy]]


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """What the proxy logs."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
async def start_proxy(tmp_path: Path, log: list[Any]) -> AsyncIterator[StartProxy]:
    """Starts proxies; `settings` are those of ProxyConfig, with loopback destinations allowed unless they say."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with contextlib.AsyncExitStack() as stack:

        async def start(**settings: Any) -> RunningProxy:
            usual: dict[str, Any] = {
                "listen": (ANY_PORT,),
                "state": tmp_path / "state",
                "allow": LOOPBACK,
                "datapath": DatapathChoice.RELAY,  # the splice would be hung on this machine's own interfaces
            }
            config = ProxyConfig(**(usual | {"stop_grace_s": 0} | settings))
            proxy = Proxy(config)
            await proxy.start()
            running = RunningProxy(proxy, config.state, log)

            async def stop() -> None:
                for node in running.nodes:
                    node.close()
                await proxy.stop()

            stack.push_async_callback(stop)
            return running

        yield start
    assert not faults, "a callback raised what nobody caught"


@pytest.fixture
async def proxy(start_proxy: StartProxy) -> RunningProxy:
    return await start_proxy()


@pytest.fixture
async def open_proxy(start_proxy: StartProxy) -> RunningProxy:
    return await start_proxy(open=True)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with server_on() as made:
        yield made


@pytest.fixture
async def echo() -> AsyncIterator[UdpServer]:
    server = UdpServer()
    yield server
    server.close()


async def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
