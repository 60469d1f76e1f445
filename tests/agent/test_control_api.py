"""The control API of a running agent: what it answers, also to nonsense."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.agent.agent_lab import FLOW_KEYS, LINK_KEYS, LINKS, AgentLab, RunningAgent, echo, receive_exactly

from msocks.agent.control_path import MAX_PATH_BYTES
from msocks.agent.control_socket import bind_control_socket
from msocks.errors import ConfigurationError

STATUS_KEYS = {
    "schema", "version", "pid", "uptime_s", "user", "proxy", "authorised", "problem", "listen", "control", "links",
    "flows", "handshakes", "runs",
}  # fmt: skip


class Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("agent", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


def ask(agent: RunningAgent, method: str, path: str, body: bytes | str | None = None) -> tuple[int, dict[str, Any]]:
    connection = Connection(agent.control)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    assert answer["schema"] == 1
    return response.status, answer


def test_status_and_links_have_exactly_their_keys(lab: AgentLab, agent: RunningAgent):
    status, answer = ask(agent, "GET", "/v1/status")
    assert (status, set(answer)) == (200, STATUS_KEYS)
    assert (answer["user"], answer["authorised"], answer["problem"]) == ("alice", True, None)
    assert answer["proxy"] == [str(address) for address in lab.access.addresses]
    assert answer["links"] == {"wifi": "up", "lte": "up"}
    assert set(answer["flows"]) == {"connecting", "live", "parked", "ended"}
    assert "secret" not in json.dumps(answer)
    status, answer = ask(agent, "GET", "/v1/links")
    assert (status, set(answer)) == (200, {"schema", "links"})
    assert [link["name"] for link in answer["links"]] == list(LINKS)
    for link in answer["links"]:
        assert set(link) == LINK_KEYS
        assert link["state"] == "up"
        assert link["rtt_ms"] > 0
        assert link["loss_percent"] == 0


def test_the_socket_is_for_its_owner_alone(agent: RunningAgent):
    mode = Path(agent.control).stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)


async def test_moves_are_answered_flow_by_flow(lab: AgentLab, agent: RunningAgent):
    async with lab.server(echo) as destination:
        socks = [await asyncio.to_thread(agent.connect, destination) for _ in range(3)]
        flows = [flow for flow in agent.client.flows() if flow["destination"] == str(destination)]
        assert [set(flow) for flow in flows] == [FLOW_KEYS] * 3
        first = flows[0]
        target = "lte" if first["link"] == "wifi" else "wifi"
        links = {link["name"]: link["flows"] for link in agent.client.links()}
        assert links[first["link"]] >= 3

        # The whole id, the printed one, and the beginning of it in capitals.
        for name in (first["session"], first["id"], first["id"][:6].upper()):
            status, answer = await asyncio.to_thread(
                ask, agent, "POST", f"/v1/flows/{name}/move", json.dumps({"to": target})
            )
            assert (status, set(answer)) == (200, {"schema", "to", "moves"})
            (move,) = answer["moves"]
            assert set(move) == {"id", "session", "from", "moved", "error"}
            assert (move["session"], move["moved"], move["error"]) == (first["session"], True, None)
        states = {flow["session"]: flow["link"] for flow in agent.client.flows()}
        assert [states[flow["session"]] for flow in flows] == [target, first["link"], first["link"]]

        status, answer = await asyncio.to_thread(ask, agent, "POST", "/v1/flows/all/move", json.dumps({"to": target}))
        assert status == 200
        moved = {move["session"] for move in answer["moves"] if move["moved"]}
        assert {flow["session"] for flow in flows} <= moved
        assert agent.flow(destination)["link"] == target

        for sock in socks:
            sock.close()
        await agent.until(lambda: all(flow["state"] == "ended" for flow in agent.client.flows()))
    status, answer = ask(agent, "POST", f"/v1/flows/{first['id']}/move", json.dumps({"to": target}))
    assert (status, "has ended" in answer["error"]["what"]) == (410, True)
    status, answer = ask(agent, "POST", "/v1/flows/all/move", json.dumps({"to": target}))
    assert (status, answer["moves"]) == (200, [])


async def test_a_beginning_that_several_flows_share_is_ambiguous(lab: AgentLab, agent: RunningAgent):
    async with lab.server(echo) as destination:
        # Seventeen ids cannot all begin with different digits.
        socks = [await asyncio.to_thread(agent.connect, destination) for _ in range(17)]
        digits = [flow["id"][0] for flow in agent.client.flows() if flow["state"] == "live"]
        shared = next(digit for digit in digits if digits.count(digit) > 1)
        status, answer = ask(agent, "POST", f"/v1/flows/{shared}/move", '{"to": "wifi"}')
        assert (status, answer["error"]["remedy"]) == (409, "give more digits")
        for sock in socks:
            sock.close()
        await agent.until(lambda: all(flow["state"] == "ended" for flow in agent.client.flows()))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "what"),
    [
        ("GET", "/", None, 404, "not found"),
        ("GET", "/v2/status", None, 404, "not found"),
        ("POST", "/v1/status", None, 405, "not allowed"),
        ("GET", "/v1/flows/all/move", None, 405, "not allowed"),
        ("POST", "/v1/flows/all/move", None, 400, "does not name a link"),
        ("POST", "/v1/flows/all/move", "not json", 400, "does not name a link"),
        ("POST", "/v1/flows/all/move", "[1]", 400, "does not name a link"),
        ("POST", "/v1/flows/all/move", '{"to": 5}', 400, "does not name a link"),
        ("POST", "/v1/flows/all/move", '{"to": ""}', 400, "does not name a link"),
        ("POST", "/v1/flows/all/move", b"\xff\xfe", 400, "does not name a link"),
        ("POST", "/v1/flows/all/move", "[" * 10_000, 400, "does not name a link"),
        ("POST", "/v1/flows/all/move", "x" * 100_000, 413, "too large"),
        ("POST", "/v1/flows/all/move", '{"to": "no-such-link"}', 409, "no such network interface"),
        ("POST", "/v1/flows/0123/move", '{"to": "wifi"}', 404, "no flow 0123"),
        ("POST", "/v1/flows/%2e%2e/move", '{"to": "wifi"}', 404, "no flow"),
        ("POST", "/v1/flows/zz/move", '{"to": "wifi"}', 404, "no flow zz"),
        ("POST", "/v1/flows/all/pin", '{"too": "wifi"}', 400, "does not name a link"),
        ("POST", "/v1/flows/all/pin", '{"to": "no-such-link"}', 409, "no such network interface"),
        ("POST", "/v1/flows/zz/pin", '{"to": "wifi"}', 404, "no flow zz"),
        ("POST", "/v1/flows/zz/unpin", None, 404, "no flow zz"),
        ("GET", "/v1/flows/all/why", None, 404, "no flow all"),
        ("POST", "/v1/flows/zz/why", None, 405, "not allowed"),
        ("GET", "/v1/reload", None, 405, "not allowed"),
    ],
)  # fmt: skip
def test_nonsense_is_answered_with_the_status_that_fits_and_a_remedy(
    agent: RunningAgent, method: str, path: str, body: bytes | str | None, status: int, what: str
):
    found, answer = ask(agent, method, path, body)
    assert (found, set(answer), set(answer["error"])) == (status, {"schema", "error"}, {"what", "remedy"})
    assert what in answer["error"]["what"]
    assert answer["error"]["remedy"]


def say_garbage(agent: RunningAgent, garbage: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(agent.control)
        try:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass


async def test_garbage_on_the_socket_disturbs_nobody(lab: AgentLab, agent: RunningAgent):
    chance = random.Random(7)
    async with lab.server(echo) as destination:
        with await asyncio.to_thread(agent.connect, destination) as sock:
            for length in (0, 1, 100, 100_000):
                await asyncio.to_thread(say_garbage, agent, chance.randbytes(length))
                sock.sendall(b"still there")
                assert await asyncio.to_thread(receive_exactly, sock, 11) == b"still there"
        await agent.until(lambda: agent.flow(destination)["state"] == "ended")
    assert agent.flow(destination)["moves"] == 0
    assert ask(agent, "GET", "/v1/status")[0] == 200


def test_a_stale_socket_is_replaced_and_a_living_or_foreign_one_is_not(tmp_path: Path):
    path = tmp_path / "new" / "agent.sock"
    bind_control_socket(path).close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with bind_control_socket(path), pytest.raises(ConfigurationError, match="runs already") as refused:
        bind_control_socket(path)
    assert "--control" in refused.value.remedy
    foreign = tmp_path / "file"
    foreign.write_text("precious")
    with pytest.raises(ConfigurationError, match="no socket"):
        bind_control_socket(foreign)
    assert foreign.read_text() == "precious"
    with pytest.raises(ConfigurationError, match=str(MAX_PATH_BYTES)):
        bind_control_socket(tmp_path / ("x" * 200))
    with pytest.raises(ConfigurationError, match="cannot be made"):
        bind_control_socket(foreign / "agent.sock")
