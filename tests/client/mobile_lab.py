"""A lab with a running proxy, and the links half of a mobile node inside the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from msocks.client.association import Association
from msocks.client.control_channel import ControlChannels
from msocks.client.control_connection import ProxyWord
from msocks.client.path_watch import PathWatch
from msocks.errors import MsocksError
from msocks.link_monitor.monitor import LinkMonitor
from msocks.link_monitor.table import LinkChange
from msocks.protocol.control import Welcome
from msocks.store.administration import add_user
from msocks.transport.dial import Dialer
from msocks.transport.reactor import Reactor
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint
from msocks.values.link import Link, LinkState
from msocks_lab import Lab, LabProcess
from msocks_lab.namespaces import CLONE_NEWNET, setns

PORT = 7070


@contextlib.contextmanager
def on_host(lab: Lab, host: str) -> Iterator[None]:
    """Let this thread's new sockets and netlink be those of a host of the lab."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/proc/{lab.supervisor_pid}/fd/{lab.namespaces(host)['net']}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(there, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(there)
        os.close(home)


def start_proxy(lab: Lab, state: Path, port: int = PORT) -> LabProcess:
    """The proxy of the state directory; it accepts when this returns."""
    command = [sys.executable, "-m", "msocks", "proxy", "--state", str(state), "--listen", f"0.0.0.0:{port}"]
    process = lab.proxy.popen([*command, "--listen", f"[::]:{port}"])
    lab.proxy.wait_listening(port)
    lab.proxy.wait_listening(port, protocol="udp")
    return process


def make_user(lab: Lab, state: Path, name: str = "alice", port: int = PORT) -> AccessLink:
    return add_user(state, name, [Endpoint.of(lab.proxy.ipv4, port), Endpoint.of(lab.proxy.ipv6, port)])


class Told:
    """A control owner that notes what it is told."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.lost: list[tuple[str, MsocksError | OSError | None]] = []
        self.messages: list[tuple[str, ProxyWord]] = []

    def on_control_message(self, link: str, message: ProxyWord) -> None:
        self.messages.append((link, message))

    def on_control_open(self, link: str, welcome: Welcome) -> None:
        self.opened.append(link)

    def on_control_lost(self, link: str, error: MsocksError | OSError | None) -> None:
        self.lost.append((link, error))


class LinksOfANode:
    """What a mobile node has besides its sessions. `legs` and `wanted` are the test's to set."""

    def __init__(self, access: AccessLink, links: Sequence[str] | None = None, **metered: bool) -> None:
        loop = asyncio.get_running_loop()
        self.legs: dict[str, list[socket.socket]] = {}
        self.wanted = False
        self.rebound: list[str] = []
        self.told = Told()
        self.reactor = Reactor(loop)
        self.association = Association()
        self.dialer = Dialer(self.reactor, access.addresses)
        self.monitor = LinkMonitor(loop, links, metered=metered)
        self.watch = PathWatch(
            self.reactor,
            self.monitor,
            self.dialer,
            self.association,
            legs=lambda link: self.legs.get(link, ()),
            wanted=lambda: self.wanted,
            rebound=self.rebound.append,
        )
        self.channels = ControlChannels(
            self.reactor, self.dialer, self.watch, self.association, access, owner=self.told, agent_name="test"
        )
        self.changes: list[tuple[float, LinkChange]] = []
        self.watch.subscribe(self._on_changes)

    def start(self) -> None:
        self.monitor.start()
        self.watch.start()
        self.channels.start()

    async def close(self) -> None:
        await self.channels.close()
        self.watch.close()
        self.monitor.close()
        self.dialer.close()
        self.reactor.close()

    def link(self, name: str) -> Link:
        return self.watch.links()[name]

    async def until(self, condition: Callable[[], object], timeout_s: float = 5.0) -> float:
        """Wait until `condition` holds, looked at every few milliseconds; returns the loop's time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not condition():
            if loop.time() > deadline:
                raise TimeoutError
            await asyncio.sleep(0.002)
        return loop.time()

    async def until_state(self, name: str, state: LinkState, timeout_s: float = 5.0) -> float:
        return await self.until(lambda: self.watch.state(name) is state, timeout_s)

    def _on_changes(self, changes: Sequence[LinkChange]) -> None:
        now = asyncio.get_running_loop().time()
        self.changes += [(now, change) for change in changes]


@contextlib.asynccontextmanager
async def links_of_a_node(
    lab: Lab, access: AccessLink, links: Sequence[str] | None = None, **metered: bool
) -> AsyncIterator[LinksOfANode]:
    """A node's links on the lab's mobile, running."""
    with on_host(lab, "mobile"):
        node = LinksOfANode(access, links, **metered)
        node.start()
        try:
            yield node
        finally:
            await node.close()
