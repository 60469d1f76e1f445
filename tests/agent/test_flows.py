"""What programs, servers and the agent's user see of flows: real proxy, real agent, two links."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import time
from pathlib import Path

import pytest
from tests.agent.agent_lab import (
    FLOW_KEYS,
    AgentLab,
    RunningAgent,
    drip,
    echo,
    receive_all,
    receive_exactly,
    reset,
    socks_request,
)

from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint
from msocks_lab import CutMode

# -- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
async def test_curl_downloads_through_agent_and_proxy(lab: AgentLab, agent: RunningAgent, scheme: str):
    payload = bytes(range(256)) * 80_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(payload) + payload)
        await writer.drain()

    async with lab.server(serve) as destination:
        got = lab.directory / f"got-{scheme}"
        url = f"http://{destination}/"
        proxy = f"{scheme}://{agent.address[0]}:{agent.address[1]}"
        command = ["curl", "-sS", "--proxytunnel", "--proxy", proxy, "-o", str(got), url]
        await asyncio.to_thread(lab.lab.mobile.run, command)
        assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(payload).digest()
        flow = await agent.until_state(destination, "ended")
    assert set(flow) == FLOW_KEYS
    assert (flow["error"], flow["link"], flow["moves"], flow["generation"]) == (None, None, 0, 1)
    assert flow["bytes_down"] > len(payload)
    assert flow["session"].startswith(flow["id"])
    assert (flow["datapath"], flow["datapath_reason"]) == ("relay", "chosen-by-operator")


async def test_half_close_goes_both_ways(lab: AgentLab, agent: RunningAgent):
    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await reader.read()
        writer.write(hashlib.sha256(received).digest())

    payload = b"up" * 1_000_000
    async with lab.server(digest) as destination:

        def program() -> bytes:
            with agent.connect(destination) as sock:
                sock.sendall(payload)
                sock.shutdown(socket.SHUT_WR)
                return receive_all(sock)

        assert await asyncio.to_thread(program) == hashlib.sha256(payload).digest()
        assert (await agent.until_state(destination, "ended"))["bytes_up"] == len(payload)


async def test_a_program_may_send_everything_at_once_and_end(lab: AgentLab, agent: RunningAgent):
    async with lab.server(echo) as destination:

        def program() -> bytes:
            with agent.open_socket() as sock:
                sock.sendall(socks_request(destination) + b"early")
                sock.shutdown(socket.SHUT_WR)
                return receive_all(sock)[12:]

        assert await asyncio.to_thread(program) == b"early"


async def test_the_reply_comes_before_what_a_server_says_first(lab: AgentLab, agent: RunningAgent):
    banner = b"220 hello " * 1000

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        await reader.read()

    async with lab.server(greet) as destination:

        def program() -> None:
            for _ in range(50):
                with agent.connect(destination) as sock:
                    assert receive_exactly(sock, len(banner)) == banner

        await asyncio.to_thread(program)


# -- ends -----------------------------------------------------------------------------------------------------------


async def test_a_server_that_resets_resets_the_program_after_what_came_before(lab: AgentLab, agent: RunningAgent):
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"last words")
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with lab.server(rude) as destination:

        def program() -> None:
            with agent.connect(destination) as sock:
                assert receive_exactly(sock, 10) == b"last words"
                sock.sendall(b"!")
                with pytest.raises(ConnectionResetError):
                    receive_all(sock)

        await asyncio.to_thread(program)
        flow = await agent.until_state(destination, "ended")
    assert flow["error"]["what"] == "the server reset the connection"


async def test_a_program_that_resets_resets_the_server(lab: AgentLab, agent: RunningAgent):
    seen: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        try:
            await reader.read()
            seen.set_result(None)
        except OSError as error:
            seen.set_result(error)

    async with lab.server(wait) as destination:
        reset(await asyncio.to_thread(agent.connect, destination))
        assert isinstance(await asyncio.wait_for(seen, 5), ConnectionResetError)
        flow = await agent.until_state(destination, "ended")
    assert flow["error"]["what"] == "the program closed its connection"


async def test_a_program_that_vanishes_before_its_answer_leaves_nothing(lab: AgentLab, agent: RunningAgent):
    nobody = Endpoint.of("198.51.100.77", 80)
    with agent.open_socket() as sock:
        sock.sendall(socks_request(nobody))
        assert receive_exactly(sock, 2) == b"\x05\x00"
        assert (await agent.until_state(nobody, "connecting"))["datapath"] == "none"
        reset(sock)
    assert (await agent.until_state(nobody, "ended", 2.0))["error"]["what"] == "the program closed its connection"


@pytest.mark.parametrize(
    ("destination", "code", "reason"),
    [
        (lambda lab: Endpoint.of(lab.server_host, 1), 5, "refused"),
        (lambda lab: Endpoint.of("127.0.0.1", 80), 2, "rules"),
        (lambda lab: Endpoint.of("nonexistent.invalid", 80), 4, "resolve"),
    ],
    ids=["refused", "denied", "unresolvable"],
)
async def test_a_destination_that_cannot_be_had_gives_the_code_and_a_log_line(
    lab: AgentLab, agent: RunningAgent, destination: object, code: int, reason: str
):
    assert callable(destination)
    where: Endpoint = destination(lab)
    name = str(where.host).encode()

    def program() -> bytes:
        with agent.open_socket() as sock:
            sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(name)]) + name + where.port.to_bytes(2, "big"))
            return receive_all(sock)

    assert await asyncio.to_thread(program) == bytes((5, 0, 5, code, 0, 1, *bytes(6)))
    line = next(line for line in reversed(agent.log.splitlines()) if "flow_refused" in line)
    assert str(where) in line
    assert reason in line


# -- moves ----------------------------------------------------------------------------------------------------------


async def test_a_flow_moves_parks_and_resumes_without_losing_a_byte(lab: AgentLab, agent: RunningAgent):
    wifi, lte = lab.lab.link("wifi"), lab.lab.link("lte")
    async with lab.server(drip) as destination:
        sock = await asyncio.to_thread(agent.connect, destination)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        lines: list[int] = []

        async def read() -> None:
            while line := await reader.readline():
                lines.append(int(line))

        reading = asyncio.create_task(read())
        flow = await agent.until_state(destination, "live")
        assert (flow["link"], flow["last_move"]) == ("wifi", None)

        moves = await asyncio.to_thread(agent.client.move, flow["id"], "lte")
        assert [(move["moved"], move["from"], move["error"]) for move in moves] == [(True, "wifi", None)]
        flow = agent.flow(destination)
        assert (flow["state"], flow["link"], flow["moves"], flow["generation"]) == ("live", "lte", 1, 2)
        last = flow["last_move"]
        assert (last["cause"], last["from"], last["to"]) == ("requested", "wifi", "lte")
        assert abs(last["time"] - time.time()) < 60

        lte.cut(CutMode.ADMIN)
        await agent.until(lambda: agent.flow(destination)["link"] == "wifi")
        assert agent.flow(destination)["last_move"]["cause"] == "link-lost"
        wifi.cut(CutMode.CARRIER)
        assert (await agent.until_state(destination, "parked"))["link"] is None
        count = len(lines)
        lte.restore()
        await agent.until_state(destination, "live")
        assert agent.flow(destination)["link"] == "lte"
        wifi.restore()
        await agent.until(lambda: len(lines) > count + 20)

        writer.write_eof()
        await asyncio.wait_for(reading, 10)
        writer.close()
        assert lines == list(range(len(lines)))
        assert (await agent.until_state(destination, "ended"))["error"] is None


async def test_events_tell_the_life_of_a_flow(lab: AgentLab, agent: RunningAgent):
    events = agent.client.events()

    def follow(destination: Endpoint) -> list[dict[str, object]]:
        found = []
        for event in events:
            if event.get("destination") == str(destination):
                found.append(event)
                if event["event"] == "ended":
                    break
        return found

    async with lab.server(echo) as destination:
        following = asyncio.create_task(asyncio.to_thread(follow, destination))
        await asyncio.sleep(0.3)
        sock = await asyncio.to_thread(agent.connect, destination)
        flow = agent.flow(destination)
        target = "lte" if flow["link"] == "wifi" else "wifi"
        await asyncio.to_thread(agent.client.move, flow["id"], target)
        sock.close()
        told = await asyncio.wait_for(following, 10)
    events.close()
    assert {event["schema"] for event in told} == {1}
    assert {(event["session"], event["id"]) for event in told} == {(flow["session"], flow["id"])}
    kinds = [event["event"] for event in told if event["event"] != "parked"]
    assert kinds == ["opened", "carried", "carried", "ended"]
    first, second = (event for event in told if event["event"] == "carried")
    assert (first["cause"], first["from"], first["to"], first["generation"]) == ("first", None, flow["link"], 1)
    assert (second["cause"], second["from"], second["to"], second["generation"]) == (
        "requested",
        flow["link"],
        target,
        2,
    )
    assert told[-1]["error"] is None


# -- the agent's own life -------------------------------------------------------------------------------------------


async def test_sigterm_resets_programs_and_servers_and_leaves_nothing(lab: AgentLab):
    agent = lab.start_agent("stopped")
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        try:
            await reader.read()
            ended.set_result("end")
        except ConnectionResetError:
            ended.set_result("reset")

    async with lab.server(wait) as destination:
        sock = await asyncio.to_thread(agent.connect, destination)
        began = time.monotonic()
        agent.process.terminate()
        assert await asyncio.to_thread(agent.process.wait, 10) == 0
        assert time.monotonic() - began < 4
        with sock, pytest.raises(ConnectionResetError):
            receive_all(sock)
        assert await asyncio.wait_for(ended, 5) == "reset"
    assert agent.first_line == b"ready\n"
    assert not await asyncio.to_thread(Path(agent.control).exists)


def test_kill_leaves_a_control_socket_that_the_next_agent_replaces_and_a_living_one_is_respected(lab: AgentLab):
    first = lab.start_agent("killed")
    done = first.run("agent", "--config", str(Path(first.control).parent / "agent.toml"))
    assert (done.returncode, done.stdout) == (4, "")
    assert "an agent runs already at the control socket" in done.stderr
    assert first.client.status()["schema"] == 1
    first.process.kill()
    first.process.wait()
    assert Path(first.control).is_socket()
    again = lab.start_agent("killed")
    assert again.client.status()["pid"] != 0
    again.process.stop()


async def test_a_secret_that_the_proxy_does_not_know_is_told_at_once(lab: AgentLab):
    wrong = AccessLink(user="alice", secret=bytes(32), addresses=lab.access.addresses, pin=lab.access.pin)
    agent = lab.start_agent("wrong-secret", access=wrong)
    problem = (await agent.until(lambda: agent.client.status()["problem"]))["what"]
    assert not agent.client.status()["authorised"]

    def program() -> bytes:
        with agent.open_socket() as sock:
            sock.sendall(b"CONNECT server.example:80 HTTP/1.1\r\nHost: server.example\r\n\r\n")
            return receive_all(sock)

    answer = await asyncio.to_thread(program)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert problem.encode() in answer
    status = await asyncio.to_thread(agent.run, "status")
    assert problem in status.stdout
    agent.process.stop()


async def test_with_no_link_it_starts_and_a_program_is_told_in_time(lab: AgentLab):
    for link in lab.lab.links:
        link.cut(CutMode.ADMIN)
    try:
        agent = lab.start_agent("offline", connect_timeout_s=0.5)
        assert agent.first_line == b"ready\n"
        assert {link["state"] for link in agent.client.links()} == {"down"}

        def program() -> bytes:
            with agent.open_socket() as sock:
                sock.sendall(socks_request(Endpoint.of(lab.server_host, 80)))
                return receive_all(sock)

        began = time.monotonic()
        assert await asyncio.to_thread(program) == bytes((5, 0, 5, 3, 0, 1, *bytes(6)))
        assert 0.4 < time.monotonic() - began < 2
    finally:
        for link in lab.lab.links:
            link.restore()
    async with lab.server(echo) as destination:
        await agent.until(lambda: agent.client.status()["authorised"])
        with await asyncio.to_thread(agent.connect, destination) as sock:
            sock.sendall(b"now")
            assert await asyncio.to_thread(receive_exactly, sock, 3) == b"now"
    agent.process.stop()


async def test_more_flows_than_allowed_are_refused_and_disturb_nobody(lab: AgentLab):
    agent = lab.start_agent("few", flows=2)
    async with lab.server(echo) as destination:
        with (
            await asyncio.to_thread(agent.connect, destination) as first,
            await asyncio.to_thread(agent.connect, destination),
            agent.open_socket() as third,
        ):
            third.sendall(socks_request(destination))
            assert await asyncio.to_thread(receive_all, third) == bytes((5, 0, 5, 1, 0, 1, *bytes(6)))
            first.sendall(b"still here")
            assert await asyncio.to_thread(receive_exactly, first, 10) == b"still here"
    agent.process.stop()
