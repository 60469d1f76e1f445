"""A reactor and the agent's local port in front of an echo; and a lab with a running agent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Address

import pytest
from tests.agent.agent_lab import AgentLab, RunningAgent, agent_lab

from msocks.agent.farewell import Farewells
from msocks.agent.local_port import LocalPort, ProgramRequest
from msocks.agent.settings import AgentLimits
from msocks.errors import MsocksError
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint

ANY_PORT = Endpoint(IPv4Address("127.0.0.1"), 0)


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    reactor = Reactor(asyncio.get_running_loop())
    yield reactor
    reactor.close()


class EchoAgent:
    """The local port with, in place of a proxy, an echo for every destination; `refusal` says no instead."""

    def __init__(self, reactor: Reactor, limits: AgentLimits) -> None:
        self.farewells = Farewells(reactor)
        self.port = LocalPort(reactor, limits, self.farewells, self._on_request)
        self.port.open([ANY_PORT], allow_remote=False)
        self.requests: list[ProgramRequest] = []
        self.refusal: MsocksError | None = None
        self._reactor = reactor

    @property
    def address(self) -> tuple[str, int]:
        endpoint = self.port.endpoints[0]
        return str(endpoint.host), endpoint.port

    def _on_request(self, request: ProgramRequest) -> None:
        self.requests.append(request)
        if self.refusal is not None:
            self.farewells.say(request.sock, request.dialogue.refuse(self.refusal))
            return
        request.sock.send(request.dialogue.grant(Endpoint(IPv4Address("192.0.2.7"), 4711)))
        request.sock.send(request.dialogue.take_trailing())
        self._reactor.watch(request.sock.fileno(), lambda _events: self._echo(request.sock))

    def _echo(self, sock: socket.socket) -> None:
        try:
            while data := sock.recv(65536):
                sock.send(data)
        except BlockingIOError:
            return
        except ConnectionResetError:
            pass
        self._reactor.unwatch(sock.fileno())
        sock.close()

    def close(self) -> None:
        self.port.close()
        self.farewells.close()
        for request in self.requests:
            self._reactor.unwatch(request.sock.fileno())
            request.sock.close()


@pytest.fixture
def make_echo_agent(reactor: Reactor) -> Iterator[Callable[..., EchoAgent]]:
    made: list[EchoAgent] = []

    def make(limits: AgentLimits | None = None) -> EchoAgent:
        made.append(EchoAgent(reactor, limits or AgentLimits()))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


@pytest.fixture
def echo_agent(make_echo_agent: Callable[..., EchoAgent]) -> EchoAgent:
    return make_echo_agent()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentLab]:
    """Mobile host with two fast links, proxy host with a running proxy, server host."""
    with agent_lab(tmp_path_factory.mktemp("lab")) as built:
        yield built


@pytest.fixture(scope="module")
def agent(lab: AgentLab) -> RunningAgent:
    """An agent that the proxy has accepted."""
    running = lab.start_agent("main")
    running.wait_authorised()
    return running
