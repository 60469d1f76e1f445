"""UDP through agent and proxy over links like real ones; the proxy splices TCP beside it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.agent.agent_lab import receive_exactly
from tests.agent.udp_lab import ASSOCIATE, Program, TimeServer, program_of, time_server
from tests.client.mobile_lab import on_host
from tests.end_to_end.conftest import LTE, PORT, WIFI, Field

from msocks_lab import CutMode

AGENT = ("127.0.0.1", PORT)
# The proxy's UDP does not touch the datapath, so one says it all; that of the kernel could get in its way.
pytestmark = [pytest.mark.parametrize("datapath", ["splice"], indirect=True), pytest.mark.long]


def flow(field: Field) -> dict[str, Any]:
    return [each for each in field.flows() if each["protocol"] == "udp"][-1]


async def until(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class Reader:
    """Asks for the news, and notes which have come and when."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.numbers: list[int] = []
        self.longest_gap_s = 0.0
        self._last: float | None = None

    async def read(self, count: int, within_s: float = 10.0) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, payload = await self.program.receive(within_s)
            now = loop.time()
            if self._last is not None:
                self.longest_gap_s = max(self.longest_gap_s, now - self._last)
            self._last = now
            self.numbers.append(int(payload))

    @property
    def missing(self) -> int:
        return max(self.numbers) + 1 - len(set(self.numbers))


async def test_a_move_between_slow_and_fast_loses_nothing(field: Field):
    async with time_server(field.lab) as (server, endpoint):
        with program_of(field.lab, AGENT) as program:
            reader = Reader(program)
            program.send(endpoint, b"news")
            await reader.read(50)
            for link in ("lte", "wifi"):
                moving = asyncio.create_task(asyncio.to_thread(field.msocks, "move", flow(field)["id"], "--to", link))
                await reader.read(150)
                await moving
                assert (await asyncio.to_thread(flow, field))["link"] == link
            await reader.read(50)
            assert reader.missing == 0
            assert len(reader.numbers) == len(set(reader.numbers))
    assert len(server.sources) == 1


@pytest.mark.parametrize("mode", [CutMode.CARRIER, CutMode.SILENT])
async def test_a_link_that_goes_away_costs_what_was_lost_meanwhile_and_no_address(field: Field, mode: CutMode):
    async with time_server(field.lab) as (server, endpoint):
        with program_of(field.lab, AGENT) as program:
            reader = Reader(program)
            program.send(endpoint, b"news")
            await reader.read(100)
            field.lab.link("wifi").cut(mode)
            await reader.read(200)
            assert reader.longest_gap_s < 3
            assert reader.missing < 600  # one each 5 ms
            assert (await asyncio.to_thread(flow, field))["link"] == "lte"
            assert abs(await answer_of(program, endpoint, server)) < 0.1
    assert len(set(server.sources)) == 1


async def test_from_an_ipv4_only_link_behind_a_nat_to_an_ipv6_only_link_and_back(make_field: Callable[..., Field]):
    field = make_field(replace(WIFI, ipv6=False, nat=True), replace(LTE, ipv4=False))
    field.start_proxy()
    field.start_agent("wifi", "lte")
    async with time_server(field.lab) as (server, endpoint):
        with program_of(field.lab, AGENT) as program:
            for link in ("wifi", "lte", "wifi"):
                if (await asyncio.to_thread(flow, field))["link"] != link:
                    await asyncio.to_thread(field.msocks, "move", "all", "--to", link)
                assert abs(await program.asks_the_time(endpoint)) < 0.1
            # A program that only listens does not notice that its NAT forgets it, either.
            reader = Reader(program)
            program.send(endpoint, b"news")
            await reader.read(50)
            field.lab.link("wifi").rebind_nat()
            await reader.read(200)
            assert reader.longest_gap_s < 6
    assert len(set(server.sources)) == 1


async def test_a_proxy_that_is_restarted_gets_the_flow_anew(field: Field):
    async with time_server(field.lab) as (server, endpoint):
        with program_of(field.lab, AGENT) as program:
            await program.asks_the_time(endpoint)
            field.kill_proxy()
            field.start_proxy()
            for _ in range(50):
                program.send(endpoint, b"still there?")
                with contextlib.suppress(TimeoutError):
                    await program.receive(0.2)
                    break
            assert abs(await program.asks_the_time(endpoint)) < 0.1
            assert (await asyncio.to_thread(flow, field))["state"] == "live"
    assert "udp_reopened" in field.lab.logs("mobile")
    assert len(set(server.sources)) == 2


async def test_a_limit_of_the_proxy_is_told(make_field: Callable[..., Field]):
    field = make_field()
    config = field.directory / "proxy.toml"
    config.write_text(
        f'[proxy]\nlisten = ["0.0.0.0:{PORT}"]\nstate = "{field.state}"\n'
        "[proxy.limits]\nudp_associations_per_user = 1\n"
    )
    field.start_proxy("--config", str(config))
    field.start_agent()
    with program_of(field.lab, AGENT):
        with on_host(field.lab, "mobile"):
            second = socket.create_connection(AGENT, timeout=10)
        with second:
            second.sendall(ASSOCIATE)
            assert await asyncio.to_thread(receive_exactly, second, 12) == b"\x05\x00\x05\x01\x00\x01" + bytes(6)
            assert await asyncio.to_thread(second.recv, 1) == b""
        assert "limit" in (await asyncio.to_thread(flow, field))["error"]["what"]


async def answer_of(program: Program, endpoint: Any, server: TimeServer) -> float:
    """The time, with the news stopped."""
    server.readers.clear()
    await asyncio.sleep(0.3)
    while True:
        try:
            await program.receive(0.01)
        except TimeoutError:
            break
    return await program.asks_the_time(endpoint)
