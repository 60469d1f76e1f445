"""The agent's socket for runs: what it says to a keeper, also to one that speaks nonsense."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.agent_lab import AgentLab, RunningAgent, echo
from tests.client.mobile_lab import on_host

from msocks.interception.messages import Connect, Reach, Ready, Refuse, Refused, Router, Run, decode, encode
from msocks.values.origin import Wish


@pytest.fixture
def keeper(agent: RunningAgent) -> Iterator[socket.socket]:
    """Connected, and not registered yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(5)
        sock.connect(f"{agent.control}.run")
        yield sock


def register(keeper: socket.socket, run: Run) -> Ready:
    keeper.send(encode(run))
    return decode(keeper.recv(4096), Ready)


def test_nobody_else_may_come_and_the_proxy_is_told(lab: AgentLab, agent: RunningAgent, keeper: socket.socket):
    assert stat.S_IMODE(Path(f"{agent.control}.run").stat().st_mode) == 0o600
    ready = register(keeper, Run())
    assert ready.proxy == tuple(str(each) for each in lab.access.addresses)
    assert agent.client.status()["runs"] == 1
    for address, port in (("127.0.0.1", ready.port4), ("::1", ready.port6)):
        with on_host(lab.lab, "mobile"):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        with sock:
            assert sock.connect_ex((address, port)) == errno.ECONNREFUSED  # it is held, and nobody listens


async def test_a_program_in_connect_is_answered_by_a_connection(
    lab: AgentLab, agent: RunningAgent, keeper: socket.socket
):
    """A listener stands for the program's socket: what the agent does is connect to it from its place."""
    ready = register(keeper, Run("the-tag"))
    with on_host(lab.lab, "mobile"):
        program = socket.create_server(("127.0.0.1", 0))
    with program:
        program.settimeout(5)
        host, port = program.getsockname()
        async with lab.server(echo) as destination:
            keeper.send(encode(Connect(1, f"{host}:{port}", str(destination), 4711, 65534, "prog")))
            await agent.until_state(destination, "live")
            sock, peer = program.accept()
            assert peer == ("127.0.0.1", ready.port4)
            flow = agent.flow(destination)
            assert [flow[key] for key in ("process", "pid", "user", "tag")] == ["prog", 4711, "nobody", "the-tag"]
            sock.close()
            await agent.until_state(destination, "ended")


def test_a_refusal_has_the_cookie_and_the_reason(lab: AgentLab, keeper: socket.socket):
    register(keeper, Run())
    keeper.send(encode(Connect(5, "127.0.0.1:4711", f"{lab.server_host}:1", 1, 0, "p")))
    assert decode(keeper.recv(4096), Refuse) == Refuse(5, errno.ECONNREFUSED)
    keeper.send(encode(Connect(6, "127.0.0.1:4711", "10.9.8.7:80", 1, 0, "p")))
    assert decode(keeper.recv(4096), Refuse) == Refuse(6, errno.EACCES)


@pytest.mark.parametrize(
    "packets",
    [
        [b"nonsense"],
        [encode(Refuse(1, 1))],
        [encode(Run(wish=Wish(link="nosuch0")))],
        [encode(Run()), encode(Run())],
        [encode(Run()), encode(Connect(1, "no endpoint", "192.0.2.1:80", 1, 1, "p"))],
        [encode(Run()), encode(Connect(1, "127.0.0.1:1", "not a name:80", 1, 1, "p"))],
    ],
    ids=["nonsense", "out-of-place", "unknown-link", "twice", "bad-local", "bad-destination"],
)
def test_nonsense_ends_the_registration_and_no_other(agent: RunningAgent, keeper: socket.socket, packets: list[bytes]):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.settimeout(5)
        other.connect(f"{agent.control}.run")
        register(other, Run())
        for packet in packets:
            keeper.send(packet)
        answers = [keeper.recv(4096) for _ in packets]
        refused = decode(answers[-1], Refused)
        assert refused.what
        assert keeper.recv(4096) == b""
        other.send(encode(Connect(9, "127.0.0.1:1", "192.0.2.1:0", 1, 1, "p")))
        assert decode(other.recv(4096), Refuse) == Refuse(9, errno.ECONNREFUSED)


def test_the_socket_is_gone_with_the_agent(lab: AgentLab):
    second = lab.start_agent("second")
    path = Path(f"{second.control}.run")
    assert path.is_socket()
    assert second.process.stop() == 0
    assert not path.exists()


def test_a_router_without_listening_sockets_is_refused(agent: RunningAgent, keeper: socket.socket):
    with socket.socket() as bound:  # not listening
        bound.bind(("127.0.0.1", 0))
        socket.send_fds(keeper, [encode(Router("lan"))], [bound.fileno()])
        refused = decode(keeper.recv(4096), Refused)
        assert "no listening sockets" in refused.what
        assert keeper.recv(4096) == b""
    assert agent.client.status()["runs"] == 0


def test_sockets_that_nobody_asked_for_are_closed(agent: RunningAgent, keeper: socket.socket):
    ours, its = socket.socketpair()
    with ours:
        ours.settimeout(5)
        with its:
            socket.send_fds(keeper, [encode(Run())], [its.fileno()])
            decode(keeper.recv(4096), Ready)
        assert ours.recv(1) == b""


def test_reach_is_told_to_who_asks_and_told_again(agent: RunningAgent, keeper: socket.socket):
    agent.wait_authorised()
    register(keeper, Run(reach=True))
    told = decode(keeper.recv(4096), Reach)
    while not told.usable:  # an agent that has just started has yet to find its proxy
        told = decode(keeper.recv(4096), Reach)
    keeper.settimeout(2)  # whose silence would mean that the agent hangs
    assert decode(keeper.recv(4096), Reach).usable
