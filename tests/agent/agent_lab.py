"""A lab with a running proxy, an agent on its mobile host, and servers and programs in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from tests.client.mobile_lab import on_host
from tests.own_server import Service, serving

from msocks.cli.agent_client import AgentClient
from msocks.store.administration import add_user
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint
from msocks_lab import Lab, LabConfig, LabProcess, LinkConfig

MSOCKS = [sys.executable, "-m", "msocks"]
PROXY_PORT = 7070
LINKS = ("wifi", "lte")

# What the agent's JSON has; others rely on it.
FLOW_KEYS = {
    "id", "session", "state", "link", "destination", "datapath", "datapath_reason", "generation", "moves",
    "bytes_up", "bytes_down", "since", "last_move", "rule", "pinned", "error", "process", "pid", "user",
    "tag", "source", "protocol", "dropped_datagrams",
}  # fmt: skip
LINK_KEYS = {
    "name", "state", "rtt_ms", "loss_percent", "flows", "kind", "role", "rate_mbit", "cost", "coverage", "used_bytes",
    "cap_bytes", "problem", "middlebox",
}  # fmt: skip


class AgentLab:
    """One proxy, any number of agents, one after the other or side by side."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.state = directory / "state"
        self.access = add_user(self.state, "alice", [Endpoint.of(lab.proxy.ipv4, PROXY_PORT)])
        listen = ["--listen", f"0.0.0.0:{PROXY_PORT}"]
        allow = ["--allow", "198.51.100.0/24", "--allow", "2001:db8::/32"]
        self.proxy = lab.proxy.popen([*MSOCKS, "proxy", "--state", self.state, "--datapath", "relay", *listen, *allow])
        lab.proxy.wait_listening(PROXY_PORT)

    @property
    def server_host(self) -> str:
        return self.lab.server.ipv4

    def start_agent(
        self, name: str, *, access: AccessLink | None = None, policy: str = "", **limits: float
    ) -> RunningAgent:
        """An agent with a control socket and a port of its own; its programs can connect when this returns.

        `policy` is the text of its tables ``[policy]``.
        """
        return RunningAgent(self, name, access or self.access, limits, policy)

    @contextlib.asynccontextmanager
    async def server(self, service: Service) -> AsyncIterator[Endpoint]:
        """Serve on the lab's server host; what a connection still does when the block ends is cancelled."""
        with on_host(self.lab, "server"):
            listener = socket.create_server((self.server_host, 0))
        async with serving(listener, service):
            yield Endpoint.of(self.server_host, listener.getsockname()[1])


class RunningAgent:
    """An agent process on the lab's mobile host."""

    def __init__(self, lab: AgentLab, name: str, access: AccessLink, limits: dict[str, float], policy: str) -> None:
        self._lab = lab.lab
        directory = lab.directory / name
        directory.mkdir(exist_ok=True)
        access_file = directory / "access"
        access_file.write_text(f"{access}\n")
        access_file.chmod(0o600)
        self.config = config = directory / "agent.toml"
        settings = {
            "access_file": "access",
            "listen": ["127.0.0.1:0"],
            "control": "agent.sock",
            "links": list(LINKS),
            "state": "state",
        }
        lines = ["[agent]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        lines += ["[agent.limits]", *(f"{key} = {value}" for key, value in limits.items())]
        self._settings = "\n".join(lines)
        self.write_policy(policy)
        self.control = str(directory / "agent.sock")
        self.process: LabProcess = lab.lab.mobile.popen(
            [*MSOCKS, "agent", "--config", config, "-v"], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        self.client = AgentClient(self.control)
        listen = Endpoint.parse(self.client.status()["listen"][0])
        self.address = (str(listen.host), listen.port)

    def write_policy(self, policy: str) -> None:
        """Put other tables ``[policy]`` into the configuration, at once."""
        fresh = self.config.with_suffix(".new")
        fresh.write_text(f"{self._settings}\n{policy}\n")
        fresh.replace(self.config)

    @property
    def log(self) -> str:
        return self.process.output()

    def command(self, *arguments: str, **options: Any) -> LabProcess:
        """Start ``msocks`` with this agent in its environment."""
        return self._lab.mobile.popen([*MSOCKS, *arguments], env={"MSOCKS_CONTROL": self.control}, **options)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``msocks`` with this agent in its environment."""
        return self._lab.mobile.run(
            [*MSOCKS, *arguments], env={"MSOCKS_CONTROL": self.control}, check=False, timeout=30, **options
        )

    def open_socket(self) -> socket.socket:
        """A program's connection to the local port, blocking."""
        with on_host(self._lab, "mobile"):
            return socket.create_connection(self.address, timeout=10)

    def connect(self, destination: Endpoint) -> socket.socket:
        """A program's connection to a destination, by SOCKS5."""
        sock = self.open_socket()
        sock.sendall(socks_request(destination))
        assert receive_exactly(sock, 2) == b"\x05\x00"
        reply = receive_exactly(sock, 10)
        assert reply[:4] == b"\x05\x00\x00\x01", reply
        return sock

    def wait_authorised(self, timeout_s: float = 10.0) -> None:
        """Return when the proxy has accepted the agent and both links are up and measured."""
        end = time.monotonic() + timeout_s
        while not self.client.status()["authorised"] or any(
            link["state"] != "up" or link["rtt_ms"] is None for link in self.client.links()
        ):
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    def flow(self, destination: Endpoint) -> dict[str, Any]:
        """The newest flow to a destination."""
        return [flow for flow in self.client.flows() if flow["destination"] == str(destination)][-1]

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        """Ask until `condition` gives something true; returns that."""
        end = time.monotonic() + timeout_s
        while not (result := await asyncio.to_thread(condition)):
            assert time.monotonic() < end, f"{self.client.flows()}\n{self.log[-3000:]}"
            await asyncio.sleep(0.02)
        return result

    async def until_state(self, destination: Endpoint, state: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """The newest flow to a destination, once it is in `state`."""

        def in_that_state() -> bool:
            flows = [flow for flow in self.client.flows() if flow["destination"] == str(destination)]
            return bool(flows) and flows[-1]["state"] == state

        await self.until(in_that_state, timeout_s)
        return self.flow(destination)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A numbered line every 10 ms, until the peer ends."""
    number = 0
    while not reader.at_eof():
        writer.write(b"%08d\n" % number)
        await writer.drain()
        number += 1
        await asyncio.sleep(0.01)
    writer.close()


def socks_request(destination: Endpoint) -> bytes:
    """Greeting and CONNECT to an IPv4 address, in one piece."""
    return (
        b"\x05\x01\x00\x05\x01\x00\x01" + socket.inet_aton(str(destination.host)) + destination.port.to_bytes(2, "big")
    )


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        data = sock.recv(count - len(received))
        assert data, f"the end after {received!r}"
        received += data
    return received


def receive_all(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(65536):
        received += data
    return received


def reset(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextlib.contextmanager
def agent_lab(directory: Path, *links: str) -> Iterator[AgentLab]:
    """Fast links, two unless others are named; a proxy."""
    with Lab(LabConfig([LinkConfig(name, fat=True) for name in links or LINKS])) as lab:
        yield AgentLab(lab, directory)
