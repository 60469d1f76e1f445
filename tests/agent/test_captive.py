"""Captive portals: a link that answers, but not as the proxy. Flows stay elsewhere, and go on after the login."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.agent.agent_lab import AgentLab, RunningAgent, agent_lab, drip

from msocks_lab import PortalKind


class Drip:
    """The numbered lines of a flow that a program reads, and when each came."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.times: list[float] = []

    async def read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self.lines.append(int(line))
            self.times.append(time.monotonic())

    def longest_gap(self, since: float) -> float:
        """Seconds without a line, from then on."""
        times = [since, *(each for each in self.times if each > since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def is_whole(self) -> bool:
        return self.lines == list(range(len(self.lines)))


@contextlib.asynccontextmanager
async def dripping(lab: AgentLab, agent: RunningAgent) -> AsyncIterator[Drip]:
    """A flow over the preferred link that carries a line every 10 ms."""
    async with lab.server(drip) as destination:
        sock = await asyncio.to_thread(agent.connect, destination)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        seen = Drip()
        reading = asyncio.create_task(seen.read(reader))
        assert (await agent.until_state(destination, "live"))["link"] == "wifi"
        yield seen
        writer.write_eof()
        await asyncio.wait_for(reading, 10)
        writer.close()


def state_of(agent: RunningAgent, link: str) -> str:
    return next(str(each["state"]) for each in agent.client.links() if each["name"] == link)


def carried_by(agent: RunningAgent) -> set[str | None]:
    return {flow["link"] for flow in agent.client.flows() if flow["state"] != "ended"}


async def a_portal_comes_and_goes(
    lab: AgentLab, agent: RunningAgent, kind: PortalKind, *, udp: bool, back_in_s: float, waits: bool = True
) -> None:
    wifi = lab.lab.link("wifi")
    async with dripping(lab, agent) as seen:
        began = wifi.portal(kind, udp=udp).done
        # One that says nothing at all is silent until the channel's handshake has been given up.
        named = {"captive", "silent"} if kind is PortalKind.MUTE else {"captive"}
        await agent.until(lambda: state_of(agent, "wifi") in named)
        await agent.until(lambda: carried_by(agent) == {"lte"})
        if kind is not PortalKind.MUTE:
            shown = agent.run("links").stdout
            assert "(captive portal?)" in shown
            assert "log in there" in shown
        moved = time.monotonic()
        before = lab.lab.link("wifi").counters()
        await asyncio.sleep(2 if waits else 1.2)  # longer than a better link has to wait
        crossed = wifi.counters().since(before)
        assert seen.longest_gap(began) < 1.5
        assert seen.longest_gap(moved) < 0.3, "the portal has disturbed a flow that was well"
        assert crossed.bytes_up + crossed.bytes_down < 30_000
        assert carried_by(agent) == {"lte"}
        logged_in = wifi.log_in().done
        await agent.until(lambda: state_of(agent, "wifi") == "up")
        assert time.monotonic() - logged_in < back_in_s
        if waits:
            await agent.until(lambda: carried_by(agent) == {"wifi"})
        count = len(seen.lines)
        await agent.until(lambda: len(seen.lines) > count + 20)
    assert seen.is_whole()


async def test_a_portal_takes_no_flow_and_its_end_is_noticed(lab: AgentLab, agent: RunningAgent):
    await a_portal_comes_and_goes(lab, agent, PortalKind.HTTP, udp=False, back_in_s=2, waits=False)


@pytest.mark.long
@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("kind", list(PortalKind))
async def test_portals_of_every_kind(lab: AgentLab, agent: RunningAgent, kind: PortalKind, udp: bool):
    # A link that was silent a moment ago has to show for longer that it is back.
    await a_portal_comes_and_goes(lab, agent, kind, udp=udp, back_in_s=5)


@pytest.mark.long
async def test_an_agent_that_wakes_up_behind_a_portal_goes_on_after_the_login(tmp_path: Path):
    with agent_lab(tmp_path, "wifi") as lab:
        lab.lab.link("wifi").portal(PortalKind.CERTIFICATE)
        agent = lab.start_agent("hotel")
        await agent.until(lambda: state_of(agent, "wifi") == "captive")
        (link,) = [each for each in agent.client.links() if each["name"] == "wifi"]
        assert "log in there" in link["problem"]["remedy"]
        await asyncio.sleep(1)
        logged_in = lab.lab.link("wifi").log_in().done
        await agent.until(lambda: agent.client.status()["authorised"])
        assert time.monotonic() - logged_in < 1.5
        assert state_of(agent, "wifi") == "up"
