"""Control channels over the links of a lab, to a real proxy and to one that does what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from msocks.client.link_channel import ChannelState
from msocks.errors import AuthenticationError, ControlUnavailable, EndReason, LinkUnavailable, PinMismatch, ProtocolError
from msocks.protocol.control import (
    Drain,
    Goodbye,
    Hello,
    LegAccepted,
    Park,
    Parked,
    ParkedLeg,
    Ping,
    Pong,
    RefusalCode,
    Refused,
    SessionEnded,
)
from msocks.store.administration import remove_user
from msocks.store.identity import ProxyIdentity
from msocks.store.state_directory import StateDirectory
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId
from msocks.values.link import LinkState
from msocks_lab import CutMode, Lab, LabConfig, LinkConfig
from tests.client.mobile_lab import LinksOfANode, links_of_a_node, make_user, on_host, start_proxy
from tests.client.scripted_proxy import ScriptedChannel, scripted_proxy

SCRIPTED_PORT = 7171


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    links = [LinkConfig("wifi", rtt_ms=5, rate_mbit=50), LinkConfig("lte", rtt_ms=50, rate_mbit=20, nat=True)]
    with Lab(LabConfig(links)) as built:
        yield built


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proxy")


@pytest.fixture(scope="module")
def access(lab: Lab, state: Path) -> AccessLink:
    """An access link to a proxy that runs."""
    made = make_user(lab, state)
    start_proxy(lab, state)
    return made


@pytest.fixture
def scripted(access: AccessLink, lab: Lab) -> AccessLink:
    """The same proxy's access link, to the port of a script."""
    return dataclasses.replace(access, addresses=(Endpoint.of(lab.proxy.ipv4, SCRIPTED_PORT),))


def identity(state: Path) -> Path:
    return ProxyIdentity.load_or_create(StateDirectory.existing(state)).path


def lost(node: LinksOfANode, link: str = "wifi") -> list[object]:
    return [error for name, error in node.told.lost if name == link]


class TestWithTheProxy:
    async def test_each_link_gets_a_channel_of_the_same_association(self, lab: Lab, access: AccessLink):
        async with links_of_a_node(lab, access) as node:
            await node.until(lambda: set(node.told.opened) == {"wifi", "lte"})
            status = node.channels.status()
            for link, nat in (("wifi", False), ("lte", True)):
                assert status[link].state is ChannelState.OPEN
                assert status[link].error is None
                assert status[link].peer == access.addresses[0]
                observed = status[link].observed
                assert observed is not None
                assert (observed.host in node.link(link).addresses) is not nat
            first = node.association.keys
            assert first is not None
            assert first == await node.association.wait_ready(0)

    async def test_what_is_said_goes_over_the_promptest_link_and_the_answer_comes(self, lab: Lab, access: AccessLink):
        park = Park((ParkedLeg(SessionId.generate(), 1, 0),))
        async with links_of_a_node(lab, access) as node:
            assert node.channels.send(park) is None
            await node.until(lambda: len(node.told.opened) == 2)
            assert node.channels.send(park) == "wifi"
            await node.until(lambda: node.told.messages)
            assert node.channels.send(park, avoid="wifi") == "lte"
            await node.until(lambda: len(node.told.messages) == 2)
            assert node.told.messages == [("wifi", Parked(())), ("lte", Parked(()))]

    async def test_a_link_that_goes_takes_its_channel_and_coming_back_brings_one(self, lab: Lab, access: AccessLink):
        async with links_of_a_node(lab, access) as node:
            await node.until(lambda: len(node.told.opened) == 2)
            keys = node.association.keys
            await asyncio.to_thread(lab.link("wifi").cut, CutMode.ADMIN)
            await node.until(lambda: node.told.lost == [("wifi", None)])
            assert list(node.channels.status()) == ["lte"]
            event = await asyncio.to_thread(lab.link("wifi").restore)
            assert await node.until(lambda: node.told.opened.count("wifi") == 2) - event.done < 0.5
            assert node.association.keys is keys or node.association.keys == keys

    async def test_another_address_on_the_same_link_brings_another_channel(self, lab: Lab, access: AccessLink):
        async with links_of_a_node(lab, access) as node:
            await node.until(lambda: len(node.told.opened) == 2)
            before = node.channels.status()["wifi"].observed
            event = await asyncio.to_thread(lab.link("wifi").readdress)
            assert await node.until(lambda: node.told.opened.count("wifi") == 2) - event.done < 0.5
            after = node.channels.status()["wifi"].observed
            assert after is not None
            assert before is not None
            assert after.host != before.host
            assert after.host in node.link("wifi").addresses
            assert node.told.opened.count("lte") == 1

    async def test_starts_without_any_link(self, lab: Lab, access: AccessLink):
        for name in ("wifi", "lte"):
            await asyncio.to_thread(lab.link(name).detach)
        async with links_of_a_node(lab, access) as node:
            await asyncio.sleep(0.1)
            assert node.told.opened == []
            for name in ("wifi", "lte"):
                await asyncio.to_thread(lab.link(name).attach)
            await node.until(lambda: len(node.told.opened) == 2)

    async def test_renewal_asks_the_proxy_and_a_forged_refusal_is_found_out(self, lab: Lab, access: AccessLink):
        async with links_of_a_node(lab, access) as node:
            await node.until(lambda: len(node.told.opened) == 2)
            keys = node.association.keys
            assert keys is not None
            began = asyncio.get_running_loop().time()
            assert await node.association.renew(keys, 5) == keys
            assert asyncio.get_running_loop().time() - began < 0.2
            assert not node.told.lost

    async def test_a_wrong_secret_is_refused_for_good(self, lab: Lab, access: AccessLink):
        async with links_of_a_node(lab, dataclasses.replace(access, secret=bytes(31) + b"x")) as node:
            with pytest.raises(AuthenticationError, match="does not accept this access link"):
                await node.association.wait_ready(5)
            await node.until(lambda: len(node.told.lost) == 2)
            status = node.channels.status()["wifi"]
            assert status.state is ChannelState.WAITING
            assert isinstance(status.error, AuthenticationError)
            assert status.retry_in_s is not None
            assert status.retry_in_s > 25, "not asked again soon"
            assert node.watch.state("wifi") is LinkState.UP

    async def test_a_removed_user_is_told(self, lab: Lab, access: AccessLink, state: Path):
        bob = make_user(lab, state, "bob")
        async with links_of_a_node(lab, bob) as node:
            await node.until(lambda: len(node.told.opened) == 2)
            await asyncio.to_thread(remove_user, state, "bob")
            await node.until(lambda: node.association.refusal is not None)
            assert isinstance(lost(node)[0], AuthenticationError)

    async def test_a_wrong_pin_is_loud_and_tried_again_only_seldom(self, lab: Lab, access: AccessLink):
        async with links_of_a_node(lab, dataclasses.replace(access, pin=bytes(32))) as node:
            await node.until_state("wifi", LinkState.CAPTIVE)
            await node.until_state("lte", LinkState.CAPTIVE)
            status = node.channels.status()["wifi"]
            assert isinstance(status.error, PinMismatch)
            assert status.error.expected == bytes(32)
            assert status.error.seen == access.pin
            assert status.retry_in_s is not None
            assert status.retry_in_s > 5
            assert node.association.keys is None
            assert not node.told.opened

    async def test_a_restarted_proxy_is_found_again_and_brings_new_keys(self, lab: Lab, tmp_path: Path):
        """With its own proxy: it is killed while the channels are idle, so nobody is told."""
        with on_host(lab, "proxy"):
            pass
        access, process = make_second_proxy(lab, tmp_path)
        async with links_of_a_node(lab, access) as node:
            await node.until(lambda: len(node.told.opened) == 2)
            old, number = node.association.keys, node.association.next_leg_number()
            assert old is not None
            await asyncio.to_thread(process.kill)
            await asyncio.to_thread(process.wait, 5)
            assert node.association.keys == old
            with pytest.raises(ControlUnavailable):
                await node.association.renew(old, 0.2)
            again = await asyncio.to_thread(start_second_proxy, lab, tmp_path)
            new = await node.association.renew(old, 10)
            assert new != old
            assert node.association.next_leg_number() > number
            await node.until(lambda: {"wifi", "lte"} <= set(node.told.opened[2:]))
            assert node.association.keys == new, "both channels attached to one association"
            await asyncio.to_thread(again.kill)


class TestWithAScript:
    async def run(
        self, lab: Lab, access: AccessLink, state: Path, script: object, links: tuple[str, ...] = ("wifi",)
    ) -> AsyncIterator[LinksOfANode]:
        raise NotImplementedError
