"""Control channels over the links of a lab, to a real proxy and to one that does what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.client.mobile_lab import LinksOfANode, links_of_a_node, make_user, on_host, start_proxy
from tests.client.scripted_proxy import Script, ScriptedChannel, scripted_proxy
from tests.own_server import serving

from msocks.client import link_channel
from msocks.client.link_channel import ChannelState
from msocks.errors import (
    AuthenticationError,
    ControlUnavailable,
    EndReason,
    PinMismatch,
    ProtocolError,
)
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


@contextlib.asynccontextmanager
async def running(lab: Lab, access: AccessLink, state: Path, script: Script) -> AsyncIterator[LinksOfANode]:
    """A node with the link wifi alone, and the scripted proxy that its access link leads to."""
    async with (
        scripted_proxy(lab, SCRIPTED_PORT, identity(state), script),
        links_of_a_node(lab, access, ["wifi"]) as node,
    ):
        yield node


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
            await node.until(lambda: node.association.refusal is not None and lost(node) != [])
            assert isinstance(lost(node)[0], AuthenticationError)

    async def test_a_wrong_pin_is_loud_and_tried_again_ever_less_often(self, lab: Lab, access: AccessLink):
        async with links_of_a_node(lab, dataclasses.replace(access, pin=bytes(32))) as node:
            await node.until_state("wifi", LinkState.CAPTIVE)
            await node.until_state("lte", LinkState.CAPTIVE)
            status = node.channels.status()["wifi"]
            assert isinstance(status.error, PinMismatch)
            assert status.error.expected == bytes(32)
            assert status.error.seen == access.pin
            assert status.retry_in_s is not None
            assert status.retry_in_s > 0.4
            assert node.association.keys is None
            assert not node.told.opened

    async def test_a_restarted_proxy_is_found_again_and_brings_new_keys(self, lab: Lab, tmp_path: Path):
        """Killed while the channels are idle; it knows nothing afterwards but its users."""
        access = make_user(lab, tmp_path, port=7272)
        process = start_proxy(lab, tmp_path, 7272)
        async with links_of_a_node(lab, access) as node:
            await node.until(lambda: len(node.told.opened) == 2)
            old, number = node.association.keys, node.association.next_leg_number()
            assert old is not None
            process.kill()
            process.end()
            with pytest.raises(ControlUnavailable):
                await node.association.renew(old, 0.3)
            assert node.association.keys == old
            process = await asyncio.to_thread(start_proxy, lab, tmp_path, 7272)
            new = await node.association.renew(old, 10)
            assert new != old
            assert node.association.next_leg_number() > number
            await node.until(lambda: set(node.told.opened[2:]) == {"wifi", "lte"})
            assert node.association.keys == new, "both channels are attached to one association"
        process.stop()


class TestWithAScript:
    """One link, and a proxy of which each channel does what the test says."""

    async def test_the_proxys_words_reach_the_owner_in_order(self, lab: Lab, scripted: AccessLink, state: Path):
        session = SessionId.generate()
        words: list[LegAccepted | SessionEnded | Drain] = [
            LegAccepted(session, 3, 17),
            SessionEnded(session, EndReason.SERVER_RESET),
            Drain(Endpoint.of("proxy2.example", 443)),
        ]
        hellos: list[Hello] = []

        async def script(channel: ScriptedChannel) -> None:
            hellos.append(await channel.welcome())
            for word in words:
                await channel.say(word)
            await channel.hear()

        async with running(lab, scripted, state, script) as node:
            await node.until(lambda: len(node.told.messages) == len(words))
            assert node.told.messages == [("wifi", word) for word in words]
            (hello,) = hellos
            assert (hello.user, hello.link, hello.agent_name) == ("alice", "wifi", "test")
            assert hello.secret == scripted.secret
            assert hello.association == node.association.id
            assert hello.smallest_mtu == 1500

    async def test_pings_of_the_proxy_are_answered(self, lab: Lab, scripted: AccessLink, state: Path):
        answers: list[object] = []

        async def script(channel: ScriptedChannel) -> None:
            await channel.welcome()
            await channel.say(Ping(5, 6))
            while True:
                answers.append(await channel.hear())

        async with running(lab, scripted, state, script) as node:
            await node.until(lambda: Pong(5, 6) in answers)

    async def test_a_channel_that_breaks_is_opened_anew_after_growing_pauses(
        self, lab: Lab, scripted: AccessLink, state: Path
    ):
        async def script(channel: ScriptedChannel) -> None:
            await channel.welcome()

        async with running(lab, scripted, state, script) as node:
            began = await node.until(lambda: node.told.opened)
            ended = await node.until(lambda: len(node.told.opened) == 4)
            assert 0.1 + 0.2 + 0.4 < ended - began < 0.2 + 0.4 + 0.8 + 0.5
            assert all(isinstance(error, ControlUnavailable | OSError) for error in lost(node))

    async def test_a_proxy_that_is_away_is_looked_for_soon_where_sessions_wait_for_it(
        self, lab: Lab, scripted: AccessLink, state: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(link_channel, "_FIRST_PAUSE_S", 20.0)  # as after many restarts

        async def script(channel: ScriptedChannel) -> None:
            await channel.welcome()

        async with running(lab, scripted, state, script) as node:
            await node.until(lambda: node.told.lost)
            retry_in_s = node.channels.status()["wifi"].retry_in_s
            assert retry_in_s is not None
            assert retry_in_s > 9
            node.wanted = True
            node.channels.verify_all()
            began = await node.until(lambda: len(node.told.opened) == 2)
            assert await node.until(lambda: len(node.told.opened) == 3) - began < 2

    async def test_a_proxy_that_goes_down_says_so(self, lab: Lab, scripted: AccessLink, state: Path):
        channels = 0

        async def script(channel: ScriptedChannel) -> None:
            nonlocal channels
            channels += 1
            if channels == 1:
                await channel.welcome()
                await channel.say(Goodbye())
            elif channels == 2:
                await channel.hear()
                await channel.say(Refused(RefusalCode.SHUTTING_DOWN, "maintenance"))
            else:
                await channel.welcome()
                await channel.hear()

        async with running(lab, scripted, state, script) as node:
            await node.until(lambda: len(node.told.opened) == 2)
            assert [str(error) for error in lost(node)] == [
                "the proxy said goodbye",
                "the proxy refused the control channel: maintenance",
            ]
            assert node.association.refusal is None

    async def test_an_identifier_that_is_taken_is_replaced_at_once(self, lab: Lab, scripted: AccessLink, state: Path):
        seen: list[Hello] = []

        async def script(channel: ScriptedChannel) -> None:
            if seen:
                seen.append(await channel.welcome())
                await channel.hear()
                return
            hello = await channel.hear()
            assert isinstance(hello, Hello)
            seen.append(hello)
            await channel.say(Refused(RefusalCode.ASSOCIATION_TAKEN))

        async with running(lab, scripted, state, script) as node:
            await node.association.wait_ready(2)
            assert len({hello.association for hello in seen}) == 2

    async def test_a_proxy_that_stops_answering_is_noticed_when_somebody_doubts(
        self, lab: Lab, scripted: AccessLink, state: Path
    ):
        channels: list[int] = []

        async def script(channel: ScriptedChannel) -> None:
            channels.append(1)
            await channel.welcome(key=len(channels))
            if len(channels) == 1:
                await asyncio.sleep(60)
            while True:
                ping = await channel.hear()
                if isinstance(ping, Ping):
                    await channel.say(Pong(ping.nonce, ping.time))

        async with running(lab, scripted, state, script) as node:
            old = await node.association.wait_ready(2)
            new = await node.association.renew(old, 5)
            assert new.up == bytes([2]) * 32
            assert "stopped answering" in str(lost(node)[0])

    async def test_goodbye_is_said_at_the_end(self, lab: Lab, scripted: AccessLink, state: Path):
        last: list[object] = []

        async def script(channel: ScriptedChannel) -> None:
            await channel.welcome()
            while True:
                last.append(await channel.hear())

        async with running(lab, scripted, state, script) as node:
            await node.association.wait_ready(2)
            await node.channels.close()
            await node.until(lambda: Goodbye() in last)

    async def test_a_proxy_that_violates_the_protocol_is_left_but_no_portal(
        self, lab: Lab, scripted: AccessLink, state: Path
    ):
        async def script(channel: ScriptedChannel) -> None:
            await channel.welcome()
            channel.write_raw(b"\x00\x00\x02")
            await asyncio.sleep(60)

        async with running(lab, scripted, state, script) as node:
            await node.until(lambda: lost(node))
            assert isinstance(lost(node)[0], ProtocolError)
            assert node.watch.state("wifi") is LinkState.UP

    async def test_an_address_that_nobody_listens_on_is_an_error_to_see(self, lab: Lab, scripted: AccessLink):
        async with links_of_a_node(lab, scripted, ["wifi"]) as node:
            await node.until(lambda: len(node.told.lost) >= 2)
            assert isinstance(node.channels.status()["wifi"].error, ConnectionRefusedError)
            assert node.channels.status()["wifi"].state in (ChannelState.WAITING, ChannelState.CONNECTING)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x28"],
    ids=["http", "tls-alert"],
)
async def test_a_captive_portal_is_recognised_and_seen_to_go(
    lab: Lab, scripted: AccessLink, state: Path, answer: bytes
):
    """It answers in the proxy's place, until the user has logged in."""

    async def portal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async def script(channel: ScriptedChannel) -> None:
        await channel.welcome()
        await channel.hear()

    with on_host(lab, "proxy"):
        listener = socket.create_server((lab.proxy.ipv4, SCRIPTED_PORT))
    async with serving(listener, portal) as close, links_of_a_node(lab, scripted, ["wifi"]) as node:
        await node.until_state("wifi", LinkState.CAPTIVE)
        assert isinstance(node.channels.status()["wifi"].error, ProtocolError)
        close()
        async with scripted_proxy(lab, SCRIPTED_PORT, identity(state), script):
            await node.until_state("wifi", LinkState.UP)
            assert node.told.opened == ["wifi"]
