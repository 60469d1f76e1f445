"""What a policy does to flows, seen by the lab's counters and by programs: real proxy, real agent, two links."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.agent_lab import (
    AgentLab,
    RunningAgent,
    drip,
    echo,
    receive_all,
    receive_exactly,
    socks_request,
)

from msocks.cli.agent_client import ConfigurationRefused
from msocks.values.endpoint import Endpoint
from msocks_lab import CutMode, Lab, LabConfig, LinkConfig

MIB = 1024 * 1024
PAYLOAD = bytes(range(256)) * (4 * MIB // 256)


@pytest.fixture(scope="module")
def roamer(lab: AgentLab) -> Iterator[RunningAgent]:
    """An agent whose policy the tests replace."""
    running = lab.start_agent("roamer")
    running.wait_authorised()
    yield running
    running.process.stop()


def rule(name: str, destination: Endpoint | None, /, **fields: object) -> str:
    if destination is not None:
        fields["port"] = [destination.port]
    return "\n".join(
        ["[[policy.rule]]", f'name = "{name}"', *(f"{key} = {json.dumps(value)}" for key, value in fields.items())]
    )


async def use(agent: RunningAgent, *tables: str, hold_down_s: float = 10) -> dict[str, object]:
    agent.write_policy("\n".join(["[policy]", f"hold_down_s = {hold_down_s}", *tables]))
    return await asyncio.to_thread(agent.client.reload)


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait for a byte, then serve the payload."""
    await reader.readexactly(1)
    writer.write(PAYLOAD)
    await writer.drain()
    writer.close()


async def download(agent: RunningAgent, destination: Endpoint) -> bytes:
    def program() -> bytes:
        with agent.connect(destination) as sock:
            sock.sendall(b"!")
            return receive_all(sock)

    return await asyncio.to_thread(program)


async def test_two_flows_with_two_rules_run_on_two_links(lab: AgentLab, roamer: RunningAgent):
    wifi, lte = lab.lab.link("wifi"), lab.lab.link("lte")
    async with lab.server(send) as first, lab.server(send) as second:
        answer = await use(roamer, rule("first", first, prefer=["wifi"]), rule("second", second, prefer=["lte"]))
        assert (answer["rules"], answer["needs_restart"]) == (2, [])
        before = wifi.counters(), lte.counters()
        assert await download(roamer, first) == PAYLOAD
        middle = wifi.counters(), lte.counters()
        assert await download(roamer, second) == PAYLOAD
        after = wifi.counters(), lte.counters()
        assert [roamer.flow(each)["rule"] for each in (first, second)] == ["first", "second"]
    carried = [
        (late[link].bytes_down - early[link].bytes_down) / len(PAYLOAD)
        for early, late in ((before, middle), (middle, after))
        for link in (0, 1)
    ]
    assert carried[0] > 1
    assert carried[1] < 0.1
    assert carried[2] < 0.1
    assert carried[3] > 1


async def test_a_reload_in_the_middle_of_a_transfer_moves_it_whole_and_touches_no_other(
    lab: AgentLab, roamer: RunningAgent
):
    block = hashlib.sha256(b"block").digest() * 2048
    served = hashlib.sha256()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(100):
            writer.write(block)
            served.update(block)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    async with lab.server(stream) as destination, lab.server(echo) as other:
        await use(roamer, rule("stream", destination, prefer=["wifi"]), rule("other", other, prefer=["wifi"]))
        bystander = await asyncio.to_thread(roamer.connect, other)
        sock = await asyncio.to_thread(roamer.connect, destination)
        receiving = asyncio.create_task(asyncio.to_thread(receive_all, sock))
        await asyncio.sleep(0.3)
        before = lab.lab.link("lte").counters().bytes_down
        answer = await use(roamer, rule("stream", destination, prefer=["lte"]), rule("other", other, prefer=["wifi"]))
        assert answer["changed_flows"] == 1
        received = await asyncio.wait_for(receiving, 20)
        sock.close()
        assert hashlib.sha256(received).digest() == served.digest()
        flow = roamer.flow(destination)
        assert (flow["moves"], flow["last_move"]["to"]) == (1, "lte")
        assert lab.lab.link("lte").counters().bytes_down - before > 20 * len(block)
        with bystander:
            bystander.sendall(b"ping")
            assert await asyncio.to_thread(receive_exactly, bystander, 4) == b"ping"
            assert roamer.flow(other)["moves"] == 0


async def test_a_bad_file_is_refused_whole_and_the_old_policy_stays(lab: AgentLab, roamer: RunningAgent):
    async with lab.server(echo) as destination:
        await use(roamer, rule("good", destination, prefer=["lte"]))
        roamer.write_policy(
            "\n".join(
                [
                    rule("good", destination, prefer=["wifi"]),
                    rule("bad", None, prefer=["lowest:price"], porrt=[1]),
                    rule("worse", None, on_loss="perhaps"),
                ]
            )
        )
        with pytest.raises(ConfigurationRefused) as refused:
            await asyncio.to_thread(roamer.client.reload)
        keys = [problem["key"] for problem in refused.value.problems]
        assert keys == ["policy.rule[1].prefer[0]", "policy.rule[1].porrt", "policy.rule[2].on_loss"]
        done = await asyncio.to_thread(roamer.run, "reload")
        assert (done.returncode, done.stdout) == (4, "")
        assert all(key in done.stderr for key in keys)
        done = await asyncio.to_thread(roamer.run, "reload", "--json")
        assert (done.returncode, json.loads(done.stdout)["loaded"]) == (4, False)
        with await asyncio.to_thread(roamer.connect, destination):
            flow = roamer.flow(destination)
            assert (flow["rule"], flow["link"]) == ("good", "lte")

            # Links that do not exist, and what cannot be meant, are problems as well.
            roamer.write_policy(rule("good", destination, prefer=["eth7"]))
            with pytest.raises(ConfigurationRefused) as refused:
                await asyncio.to_thread(roamer.client.reload)
            assert "there is no link eth7" in refused.value.problems[0]["cause"]

            # The file is looked at by itself, and at SIGHUP at once.
            roamer.write_policy(rule("new", destination, prefer=["wifi"]))
            roamer.process.send_signal(signal.SIGHUP)
            await roamer.until(lambda: roamer.flow(destination)["rule"] == "new", timeout_s=0.9)
            await roamer.until(lambda: roamer.flow(destination)["link"] == "wifi")
            roamer.write_policy(rule("newer", destination, prefer=["lte"]))
            await roamer.until(lambda: roamer.flow(destination)["rule"] == "newer", timeout_s=4)
            await roamer.until(lambda: roamer.flow(destination)["link"] == "lte")


async def test_who_waits_is_parked_although_another_link_is_up(lab: AgentLab, roamer: RunningAgent):
    wifi, lte = lab.lab.link("wifi"), lab.lab.link("lte")
    async with lab.server(drip) as destination:
        await use(roamer, rule("patient", destination, prefer=["wifi"], on_loss="wait"))
        with await asyncio.to_thread(roamer.connect, destination) as sock:
            await asyncio.to_thread(receive_exactly, sock, 90)
            before = lte.counters().bytes_down
            wifi.cut(CutMode.ADMIN)
            try:
                await roamer.until_state(destination, "parked")
                why = await asyncio.to_thread(roamer.client.why, roamer.flow(destination)["id"])
                assert (why["action"], why["rule"], why["order"]) == ("wait", "patient", [])
                sock.settimeout(1.5)
                with pytest.raises(TimeoutError):
                    await asyncio.to_thread(receive_all, sock)
                assert roamer.flow(destination)["state"] == "parked"
            finally:
                wifi.restore()
            flow = await roamer.until_state(destination, "live")
            assert (flow["link"], flow["moves"]) == ("wifi", 1)
            sock.settimeout(10)
            await asyncio.to_thread(receive_exactly, sock, 900)
            assert lte.counters().bytes_down - before < 9000


async def test_who_is_to_be_reset_is_and_its_program_sees_it(lab: AgentLab, roamer: RunningAgent):
    wifi = lab.lab.link("wifi")
    async with lab.server(drip) as destination:
        await use(roamer, rule("fragile", destination, prefer=["wifi"], on_loss="reset"))
        with await asyncio.to_thread(roamer.connect, destination) as sock:
            wifi.cut(CutMode.ADMIN)
            try:
                with pytest.raises(ConnectionResetError):
                    await asyncio.to_thread(receive_all, sock)
                flow = roamer.flow(destination)
            finally:
                wifi.restore()
    assert flow["state"] == "ended"
    assert flow["error"]["what"] == (
        "the link wifi was lost, and the policy's rule 'fragile' says on_loss = reset for this flow"
    )


async def test_a_flow_returns_when_the_better_link_has_been_there_for_the_hold_down(
    lab: AgentLab, roamer: RunningAgent
):
    wifi = lab.lab.link("wifi")
    async with lab.server(drip) as destination:
        await use(roamer, rule("back", destination, prefer=["wifi"]), hold_down_s=2)
        with await asyncio.to_thread(roamer.connect, destination) as sock:
            reading = asyncio.create_task(asyncio.to_thread(receive_all, sock))
            wifi.cut(CutMode.ADMIN)
            await roamer.until(lambda: roamer.flow(destination)["link"] == "lte")
            restored = wifi.restore().began
            await roamer.until(lambda: roamer.flow(destination)["link"] == "wifi")
            took_s = time.monotonic() - restored
            sock.shutdown(socket.SHUT_WR)
            lines = (await asyncio.wait_for(reading, 10)).split()
    assert 2 < took_s < 9  # well below the default
    assert [int(line) for line in lines] == list(range(len(lines)))


async def test_a_backup_is_used_while_nothing_else_is_there_and_what_is_never_used_not_even_then(
    lab: AgentLab, roamer: RunningAgent
):
    wifi, lte = lab.lab.link("wifi"), lab.lab.link("lte")
    async with lab.server(drip) as destination:
        spare = "[policy.link.wifi]\nrole = 'backup'"
        await use(roamer, spare, rule("spare", destination, prefer=["wifi"]), hold_down_s=0.5)
        with await asyncio.to_thread(roamer.connect, destination) as sock:
            assert roamer.flow(destination)["link"] == "lte"  # although wifi is preferred, and first of all links
            lte.cut(CutMode.ADMIN)
            try:
                await roamer.until(lambda: roamer.flow(destination)["link"] == "wifi")
            finally:
                lte.restore()
            await roamer.until(lambda: roamer.flow(destination)["link"] == "lte")
            await use(roamer, "[policy.link.lte]\nrole = 'never'", rule("never", destination, prefer=["wifi*"]))
            await roamer.until(lambda: roamer.flow(destination)["link"] == "wifi")
            before = lte.counters().bytes_down
            wifi.cut(CutMode.ADMIN)
            try:
                await roamer.until_state(destination, "parked")
                await asyncio.to_thread(receive_all_of_now, sock)
                assert roamer.flow(destination)["state"] == "parked"
            finally:
                wifi.restore()
            flow = await roamer.until_state(destination, "live")
            assert flow["link"] == "wifi"
            await asyncio.to_thread(receive_exactly, sock, 900)
            assert lte.counters().bytes_down - before < 9000


async def test_a_secondary_link_comes_after_the_others_unless_it_is_asked_for(lab: AgentLab, roamer: RunningAgent):
    async with lab.server(echo) as indifferent, lab.server(echo) as asking:
        await use(
            roamer,
            "[policy.link.wifi]\nrole = 'secondary'",
            rule("indifferent", indifferent, prefer=["lowest:cost"]),
            rule("asking", asking, prefer=["wifi"]),
        )
        with await asyncio.to_thread(roamer.connect, indifferent), await asyncio.to_thread(roamer.connect, asking):
            assert [roamer.flow(each)["link"] for each in (indifferent, asking)] == ["lte", "wifi"]


def receive_all_of_now(sock: socket.socket) -> None:
    """Read until nothing has come for half a second."""
    sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        receive_all(sock)
    sock.settimeout(10)


async def test_at_its_data_cap_a_link_is_left_and_the_next_agent_remembers(lab: AgentLab):
    capped = "\n".join(["[policy.link.wifi]", "cap_mib = 3"])
    agent = lab.start_agent("capped", policy=capped)
    await asyncio.to_thread(agent.wait_authorised)
    wifi = lab.lab.link("wifi")
    async with lab.server(send) as destination, lab.server(drip) as other:
        before = wifi.counters()
        with await asyncio.to_thread(agent.connect, other) as sock:
            assert agent.flow(other)["link"] == "wifi"
            assert await download(agent, destination) == PAYLOAD
            await agent.until(lambda: agent.flow(other)["link"] == "lte")
            await asyncio.to_thread(receive_exactly, sock, 900)
        used = wifi.counters().since(before)
        (shown,) = [link for link in agent.client.links() if link["name"] == "wifi"]
        assert shown["cap_bytes"] == 3 * MIB
        # The agent counts what the lab's own counters count, from its own start on.
        assert used.bytes_down <= shown["used_bytes"] < 1.05 * (used.bytes_down + used.bytes_up) + 100_000
        agent.process.stop()
        kept = json.loads((Path(agent.control).parent / "state" / "usage.json").read_text())
        assert kept["links"]["wifi"]["bytes"] >= shown["used_bytes"]

        again = lab.start_agent("capped", policy=capped)
        await asyncio.to_thread(again.wait_authorised)
        with await asyncio.to_thread(again.connect, other):
            assert again.flow(other)["link"] == "lte"
        again.process.stop()


async def test_a_flow_without_a_link_that_it_may_use_is_refused_with_the_code_for_rules(
    lab: AgentLab, roamer: RunningAgent
):
    async with lab.server(echo) as destination:
        await use(
            roamer,
            "[policy.link.'*']\ncost = 2",
            rule("dear", destination, max_cost=1, no_link="refuse"),
        )

        def program(first: bytes) -> bytes:
            with roamer.open_socket() as sock:
                sock.sendall(first)
                return receive_all(sock)

        assert await asyncio.to_thread(program, socks_request(destination)) == bytes((5, 0, 5, 2, 0, 1, *bytes(6)))
        text = await asyncio.to_thread(program, b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % str(destination).encode())
        assert text.startswith(b"HTTP/1.1 403 ")
        assert b"rule 'dear' allows none of the links" in text
        await use(roamer, rule("dear", destination, max_cost=1, no_link="refuse"))
        with await asyncio.to_thread(roamer.connect, destination):
            assert roamer.flow(destination)["state"] == "live"


async def test_a_pin_goes_before_the_rules_and_can_be_taken_away(lab: AgentLab, roamer: RunningAgent):
    async with lab.server(echo) as destination:
        await use(roamer, rule("only-wifi", destination, only=["wifi"]))
        with await asyncio.to_thread(roamer.connect, destination) as sock:
            flow = roamer.flow(destination)["id"]
            done = await asyncio.to_thread(roamer.run, "move", flow, "--to", "lte")
            assert (done.returncode, "rule 'only-wifi' does not allow lte" in done.stderr) == (1, True)
            done = await asyncio.to_thread(roamer.run, "pin", flow, "--to", "lte")
            assert (done.returncode, done.stdout) == (0, f"{flow}  pinned to lte\n")
            await roamer.until(lambda: roamer.flow(destination)["link"] == "lte")
            assert roamer.flow(destination)["pinned"] == "lte"
            done = await asyncio.to_thread(roamer.run, "why", flow)
            assert "pinned: lte and no other link" in done.stdout
            assert "the flow is pinned to lte" in done.stdout
            done = await asyncio.to_thread(roamer.run, "unpin", flow, "--json")
            assert json.loads(done.stdout)["flows"][0]["id"] == flow
            await roamer.until(lambda: roamer.flow(destination)["link"] == "wifi")
            sock.sendall(b"still there")
            assert await asyncio.to_thread(receive_exactly, sock, 11) == b"still there"
            why = json.loads((await asyncio.to_thread(roamer.run, "why", flow, "--json")).stdout)
            assert (why["schema"], why["decided_by"], why["rule"], why["order"]) == (1, "rule", "only-wifi", ["wifi"])
            (barred,) = [link for link in why["links"] if link["name"] == "lte"]
            assert (barred["allowed"], barred["reason"]) == (False, "only wifi")
        for arguments, reason in [
            (("pin", "all", "--to", "eth9"), "no such network"),
            (("pin", "beef", "--to", "lte"), "no flow beef"),
            (("unpin", "beef"), "no flow beef"),
            (("why", "beef"), "no flow beef"),
        ]:
            done = await asyncio.to_thread(roamer.run, *arguments)
            assert (done.returncode, done.stdout, reason in done.stderr) == (1, "", True), arguments


async def test_a_rule_can_tell_one_program_from_another(lab: AgentLab, roamer: RunningAgent):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    async with lab.server(serve) as destination, lab.server(echo) as other:
        await use(roamer, rule("curl", None, process=["curl"], user=["root"], prefer=["lte"]))
        proxy = f"socks5h://{roamer.address[0]}:{roamer.address[1]}"
        command = ["curl", "-sS", "--max-time", "10", "--proxy", proxy, f"http://{destination}/"]
        done = await asyncio.to_thread(lab.lab.mobile.run, command)
        assert done.stdout == "ok"
        flow = roamer.flow(destination)
        assert flow["rule"] == "curl"
        with await asyncio.to_thread(roamer.connect, other):
            assert (roamer.flow(other)["rule"], roamer.flow(other)["link"]) == (None, "wifi")
            why = await asyncio.to_thread(roamer.client.why, roamer.flow(other)["id"])
            assert why["flow"]["user"] == "root"
            assert why["passed_over"] == [{"rule": "curl", "does_not_fit": ["process"]}]


async def test_a_rule_can_tell_a_name_from_a_network(lab: AgentLab, roamer: RunningAgent):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(PAYLOAD) + PAYLOAD)
        await writer.drain()
        writer.close()

    async with lab.server(serve) as destination:
        await use(
            roamer,
            rule("name", None, destination=["serv*"], prefer=["lte"]),
            rule("network", None, destination=["198.51.100.0/24"], port=[f"1-{destination.port}"], prefer=["wifi"]),
        )
        proxy = f"socks5h://{roamer.address[0]}:{roamer.address[1]}"
        for host, named, link in (("server", "name", "lte"), (destination.host, "network", "wifi")):
            before = lab.lab.link(link).counters()
            command = ["curl", "-sS", "-o", "/dev/null", "--proxy", proxy, f"http://{host}:{destination.port}/"]
            await asyncio.to_thread(lab.lab.mobile.run, command)
            flow = [each for each in roamer.client.flows() if each["destination"] == f"{host}:{destination.port}"][-1]
            assert flow["rule"] == named
            assert lab.lab.link(link).counters().since(before).bytes_down > len(PAYLOAD)


async def test_the_example_of_the_paper_on_real_links(lab: AgentLab, roamer: RunningAgent):
    """Wi-Fi costs nothing and is fat, LTE costs and reaches wide; when the Wi-Fi goes the video stops, alone."""
    wifi = lab.lab.link("wifi")
    links = "\n".join(
        [
            "[policy.link.wifi]",
            'kind = "wifi"',
            "rate_mbit = 200",
            "[policy.link.lte]",
            'kind = "cellular"',
            "rate_mbit = 300",
        ]
    )
    async with lab.server(drip) as video, lab.server(drip) as transcript:
        await use(
            roamer,
            links,
            rule("video", video, prefer=["highest:rate"], max_cost=0, no_link="refuse"),
            rule("transcript", transcript, prefer=["widest:coverage"]),
        )
        with (
            await asyncio.to_thread(roamer.connect, video) as seen,
            await asyncio.to_thread(roamer.connect, transcript) as read,
        ):
            assert (roamer.flow(video)["link"], roamer.flow(transcript)["link"]) == ("wifi", "lte")
            wifi.cut(CutMode.ADMIN)
            try:
                await roamer.until_state(video, "parked")
                await asyncio.to_thread(receive_exactly, read, 450)
                with roamer.open_socket() as late:
                    late.sendall(socks_request(video))
                    assert (await asyncio.to_thread(receive_all, late))[2:4] == b"\x05\x02"
            finally:
                wifi.restore()
            await roamer.until(lambda: any(each["link"] == "wifi" for each in roamer.client.flows()))
            await asyncio.to_thread(receive_exactly, seen, 900)
            assert roamer.flow(transcript)["moves"] == 0


async def test_a_flow_follows_the_lowest_round_trip_time(tmp_path: Path):
    with Lab(LabConfig([LinkConfig("wifi", rtt_ms=20), LinkConfig("lte", rtt_ms=60)])) as slow:
        lab = AgentLab(slow, tmp_path)
        agent = lab.start_agent("quick")
        await asyncio.to_thread(agent.wait_authorised, 30)
        async with lab.server(drip) as destination:
            await use(agent, rule("quick", destination, prefer=["lowest:rtt"]), hold_down_s=1)
            with await asyncio.to_thread(agent.connect, destination) as sock:
                await agent.until(lambda: agent.flow(destination)["link"] == "wifi", timeout_s=30)
                slow.link("wifi").set(rtt_ms=200)
                await agent.until(lambda: agent.flow(destination)["link"] == "lte", timeout_s=30)
                sock.shutdown(socket.SHUT_WR)
                lines = (await asyncio.to_thread(receive_all, sock)).split()
        agent.process.stop()
    assert [int(line) for line in lines] == list(range(len(lines)))
