"""UDP through agent and proxy while links change: DNS by real programs, and time and news from servers made here."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.agent_lab import PROXY_PORT, AgentLab, RunningAgent
from tests.agent.udp_lab import DnsClient, DnsServer, program_of, time_server
from tests.client.mobile_lab import on_host

from msocks.protocol.socks5_udp import encode_udp
from msocks.store.administration import set_password
from msocks.store.running_proxy import udp_associations
from msocks.values.endpoint import Endpoint
from msocks_lab import CutMode


def udp_flow(agent: RunningAgent) -> dict[str, Any]:
    """The newest one."""
    return [flow for flow in agent.client.flows() if flow["protocol"] == "udp"][-1]


def crossed(lab: AgentLab, link: str) -> int:
    counters = lab.lab.link(link).counters()
    return int(counters.bytes_down + counters.bytes_up)


@pytest.fixture(autouse=True)
def all_links(lab: AgentLab, agent: RunningAgent) -> Iterator[None]:
    """Both links are up, and measured, when a test begins."""
    agent.wait_authorised()
    yield
    for link in lab.lab.links:
        if link.describe()["state"] != "up":
            link.restore()


# -- tests ----------------------------------------------------------------------------------------------------------


async def test_dns_goes_on_over_every_change_from_one_address_and_port(
    lab: AgentLab, agent: RunningAgent, tmp_path: Path
):
    server = DnsServer(lab.lab, tmp_path)
    client = DnsClient(lab.lab, "{}:{}".format(*agent.address), lab.server_host)
    await asyncio.to_thread(client.resolves, "on-wifi.lab.example")
    flow = udp_flow(agent)
    assert (flow["destination"], flow["link"], flow["state"], flow["moves"]) == ("udp", "wifi", "live", 0)
    assert flow["process"] is None or flow["process"].startswith("python")

    moved = await asyncio.to_thread(agent.run, "move", flow["id"], "--to", "lte")
    assert moved.returncode == 0, moved.stderr
    await asyncio.to_thread(client.resolves, "on-lte.lab.example")
    assert (udp_flow(agent)["link"], udp_flow(agent)["moves"]) == ("lte", 1)

    lab.lab.link("lte").cut(CutMode.CARRIER)
    await asyncio.to_thread(client.resolves, "link-down.lab.example")
    assert udp_flow(agent)["link"] == "wifi"
    lab.lab.link("lte").restore()
    await agent.until(lambda: all(link["state"] == "up" for link in agent.client.links()))

    lab.lab.link("wifi").cut(CutMode.SILENT)
    await asyncio.to_thread(client.resolves, "silent.lab.example")
    assert udp_flow(agent)["link"] == "lte"

    asked = server.clients()
    assert set(asked) == {f"{name}.lab.example" for name in ("on-wifi", "on-lte", "link-down", "silent")}
    assert len(set(asked.values())) == 1, asked
    (listed,) = await asyncio.to_thread(udp_associations, lab.state)
    address, _, port = asked["on-wifi.lab.example"].partition("/")
    assert address in lab.lab.proxy.addresses
    assert (int(port), listed["paths"]) == (listed["port"], 4)
    await asyncio.to_thread(client.close)
    ended = await agent.until(lambda: udp_flow(agent)["state"] == "ended" and udp_flow(agent))
    assert ended["error"] is None
    await agent.until(lambda: udp_associations(lab.state) == [])
    server.process.stop()


async def test_dns_by_a_plain_client_of_the_proxy(lab: AgentLab, agent: RunningAgent, tmp_path: Path):
    server = DnsServer(lab.lab, tmp_path)
    await asyncio.to_thread(set_password, lab.state, "alice", "sesame")
    client = DnsClient(lab.lab, f"{lab.lab.proxy.ipv4}:{PROXY_PORT}", lab.server_host, "alice", "sesame")
    for name in ("one.lab.example", "two.lab.example", "three.lab.example"):
        await asyncio.to_thread(client.resolves, name)
    (listed,) = await asyncio.to_thread(udp_associations, lab.state)
    assert (listed["user"], listed["mobile"], listed["sent"], listed["received"]) == ("alice", False, 3, 3)
    assert {client.rpartition("/")[2] for client in server.clients().values()} == {str(listed["port"])}
    printed = await asyncio.to_thread(agent.run, "sessions", "--state", str(lab.state), "--udp")
    client_address = listed["client"].replace(".", "[.]")
    assert re.search(rf"alice +plain +{client_address} +{listed['port']} +1 +.+ +3 +3 +-", printed.stdout), (
        printed.stdout
    )
    as_json = await asyncio.to_thread(agent.run, "sessions", "--state", str(lab.state), "--udp", "--json")
    assert json.loads(as_json.stdout) == {
        "schema": 1,
        "udp": [listed | {"age": json.loads(as_json.stdout)["udp"][0]["age"]}],
    }
    await asyncio.to_thread(client.close)
    await agent.until(lambda: udp_associations(lab.state) == [])
    server.process.stop()


async def test_the_time_is_the_same_over_each_link(lab: AgentLab, agent: RunningAgent):
    async with time_server(lab.lab) as (server, endpoint):
        with program_of(lab.lab, agent.address) as program:
            for _ in range(3):
                assert abs(await program.asks_the_time(endpoint)) < 0.05
            flow = udp_flow(agent)
            for link in ("lte", "wifi", "lte"):
                await asyncio.to_thread(agent.client.move, flow["id"], link)
                before = crossed(lab, link)
                assert abs(await program.asks_the_time(endpoint)) < 0.05
                assert crossed(lab, link) >= before + 2 * 48
            lab.lab.link("lte").cut(CutMode.ADMIN)
            assert abs(await program.asks_the_time(endpoint)) < 0.05
            view = udp_flow(agent)
            assert (view["link"], view["moves"], view["bytes_up"], view["bytes_down"]) == ("wifi", 4, 7 * 48, 7 * 48)
            assert view["dropped_datagrams"] == 0
    assert len(set(server.sources)) == 1


async def test_who_only_listens_misses_nothing_when_moved_between_living_links(lab: AgentLab, agent: RunningAgent):
    async with time_server(lab.lab) as (server, endpoint):
        with program_of(lab.lab, agent.address) as program:
            program.send(endpoint, b"news")
            numbers: list[int] = []

            async def read(count: int) -> None:
                while len(numbers) < count:
                    numbers.append(int((await program.receive())[1]))

            await read(20)
            flow = udp_flow(agent)
            for turn, link in enumerate(("lte", "wifi"), start=1):
                moving = asyncio.create_task(asyncio.to_thread(agent.client.move, flow["id"], link))
                await read(20 + 40 * turn)
                await moving
            assert sorted(numbers) == list(range(len(numbers)))
            assert len(server.sources) == 1
            # The link that was left carries none of it any more.
            before = crossed(lab, "lte"), crossed(lab, "wifi")
            await read(len(numbers) + 60)
            assert crossed(lab, "wifi") - before[1] > 6_000
            assert crossed(lab, "lte") - before[0] < 3_000  # probes


async def test_without_any_link_it_waits_and_keeps_what_is_fresh(lab: AgentLab, agent: RunningAgent):
    async with time_server(lab.lab) as (server, endpoint):
        with program_of(lab.lab, agent.address) as program:
            program.send(endpoint, b"before")
            assert (await program.receive())[1] == b"before"
            for link in lab.lab.links:
                link.cut(CutMode.CARRIER)
            await agent.until(lambda: udp_flow(agent)["state"] == "parked")
            for number in range(70):
                program.send(endpoint, b"%d" % number)
            await agent.until(lambda: udp_flow(agent)["dropped_datagrams"] == 6)
            lab.lab.link("lte").restore()
            received = [int((await program.receive())[1]) for _ in range(64)]
            assert sorted(received) == list(range(6, 70))  # the last 64
            assert (udp_flow(agent)["state"], udp_flow(agent)["link"]) == ("live", "lte")
    assert len(set(server.sources)) == 1


async def test_large_datagrams_are_fragmented_and_too_large_ones_counted(lab: AgentLab, agent: RunningAgent):
    async with time_server(lab.lab) as (server, endpoint):
        with program_of(lab.lab, agent.address) as program:
            for size in (1413, 1414, 1472, 9000, 60_000):
                program.send(endpoint, bytes(size))
                assert (await program.receive())[1] == bytes(size)
            program.send(endpoint, bytes(65_480))
            await agent.until(lambda: udp_flow(agent)["dropped_datagrams"] == 1)
            program.send(endpoint, b"goes on")
            assert (await program.receive())[1] == b"goes on"
    assert server.sizes == [1413, 1414, 1472, 9000, 60_000, 7]


async def test_rules_choose_the_link(lab: AgentLab):
    agent = lab.start_agent(
        "ruled", policy='[[policy.rule]]\nname = "datagrams"\ndestination = ["udp"]\nprefer = ["lte"]\n'
    )
    agent.wait_authorised()
    async with time_server(lab.lab) as (_, endpoint):
        with program_of(lab.lab, agent.address) as program:
            await program.asks_the_time(endpoint)
            flow = udp_flow(agent)
            assert (flow["link"], flow["rule"]) == ("lte", "datagrams")
            why = await asyncio.to_thread(agent.run, "why", flow["id"], "--json")
            explained = json.loads(why.stdout)
            assert (explained["rule"], explained["order"]) == ("datagrams", ["lte", "wifi"])
            pinned = await asyncio.to_thread(agent.run, "pin", flow["id"], "--to", "wifi")
            assert pinned.returncode == 0, pinned.stderr
            await agent.until(lambda: udp_flow(agent)["link"] == "wifi")
            await program.asks_the_time(endpoint)
            listed = await asyncio.to_thread(agent.run, "flows")
            assert re.search(r"live +wifi +udp +- +1 ", listed.stdout), listed.stdout
    agent.process.stop()


async def test_datagrams_of_others_and_to_where_none_may_go(lab: AgentLab, agent: RunningAgent):
    async with time_server(lab.lab) as (server, endpoint):
        with program_of(lab.lab, agent.address) as program:
            program.send(endpoint, b"mine")
            assert (await program.receive())[1] == b"mine"
            with on_host(lab.lab, "mobile"):
                stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with stranger:
                stranger.sendto(encode_udp(endpoint, b"not mine"), program.relay)
            await agent.until(lambda: udp_flow(agent)["dropped_datagrams"] == 1)
            program.send(Endpoint.of("10.9.8.7", 53), b"denied")
            program.send(endpoint, b"mine again")
            assert (await program.receive())[1] == b"mine again"
            (listed,) = await asyncio.to_thread(udp_associations, lab.state)
            assert listed["dropped"]["denied"] == 1
    assert server.sizes == [len(b"mine"), len(b"mine again")]


async def test_it_ends_with_the_program_and_with_the_agent(lab: AgentLab):
    agent = lab.start_agent("ending")
    agent.wait_authorised()
    async with time_server(lab.lab) as (_, endpoint):
        with program_of(lab.lab, agent.address) as program:
            await program.asks_the_time(endpoint)
            program.connection.close()
            await agent.until(lambda: udp_flow(agent)["state"] == "ended")
            await agent.until(lambda: udp_associations(lab.state) == [])
        with program_of(lab.lab, agent.address) as program:
            await program.asks_the_time(endpoint)
            await asyncio.to_thread(agent.process.stop)
            assert await asyncio.to_thread(program.connection.recv, 1) == b""
    assert udp_associations(lab.state) == []
