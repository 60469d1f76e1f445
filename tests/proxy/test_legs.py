"""CONNECT, RECONNECT, QUERY and CLOSE as a mobile node lives them."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest
from tests.proxy.conftest import RunningProxy, StartProxy, eventually
from tests.proxy.mobile_node import MobileNode, Server, read_all, read_exactly, receive, reset, send

from msocks.errors import EndReason
from msocks.protocol.control import LegAccepted, Park, Parked, ParkedLeg, SessionEnded
from msocks.protocol.leg import Bind, CloseMode, DatapathKind, LegReply, LegStatus
from msocks.session.first_flight import FirstFlight
from msocks.transport.kernel import bytes_unread
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def test_connect_carries_bytes_both_ways(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    leg = await node.connect(SessionId.generate(), server.endpoint, early=b"early ")
    reply = await leg.reply()
    assert leg.verified
    assert reply.status is LegStatus.OK
    assert (reply.generation, reply.down_from, reply.up_acked) == (1, 0, 0)
    assert reply.datapath is DatapathKind.RELAY
    remote = await server.accept()
    assert reply.bound == Endpoint.from_sockaddr(remote.getpeername())
    await send(leg.sock, b"bird")
    assert await read_exactly(remote, 10) == b"early bird"
    await send(remote, b"worm")
    assert await read_exactly(leg.sock, 4) == b"worm"


async def test_half_close_both_ways_ends_the_session(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    await send(leg.sock, b"request")
    leg.sock.shutdown(1)
    assert await read_all(remote) == b"request"
    await send(remote, pattern(300_000))
    remote.close()
    assert await read_all(leg.sock) == pattern(300_000)
    ended = await node.channels[0].hear(SessionEnded)
    assert ended == SessionEnded(session, EndReason.CLOSED)
    verdict = await node.query(session)
    assert (verdict.status, verdict.down_fin_at) == (LegStatus.ENDED_FIN, 300_000)


async def test_an_accepted_leg_is_announced_on_all_channels(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    second = await node.associate()
    session, leg = await node.open_session(server.endpoint)
    expected = LegAccepted(session, 1, leg.request.leg_number)
    assert await node.channels[0].hear(LegAccepted) == expected
    assert await second.hear(LegAccepted) == expected


async def test_reconnect_after_a_reset_repeats_nothing_and_skips_nothing(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    await send(leg.sock, b"one ")
    assert await read_exactly(remote, 4) == b"one "
    await send(remote, b"eins ")
    assert await read_exactly(leg.sock, 5) == b"eins "
    reset(leg.sock)
    await send(remote, b"zwei ")
    second = await node.reconnect(session, 2, received=5, upstream_from=4, early=b"two")
    reply = await second.reply()
    assert (reply.status, reply.generation, reply.down_from, reply.up_acked) == (LegStatus.OK, 2, 5, 4)
    assert await read_exactly(second.sock, 5) == b"zwei "
    assert await read_exactly(remote, 3) == b"two"


@pytest.mark.parametrize("begins_at", [9, 10, 7, 12, 5], ids=["joins", "follows", "repeats", "beyond", "behind"])
async def test_the_reply_says_where_a_leg_goes_on_behind_its_first_flight(
    proxy: RunningProxy, server: Server, begins_at: int
):
    stream, flight = b"0123456789abcdefghij", 3
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    await send(leg.sock, stream[:10])
    assert await read_exactly(remote, 10) == stream[:10]
    guessed = stream[begins_at : begins_at + flight]
    second = await node.reconnect(session, 2, 0, begins_at, guessed, first_flight=flight)
    reply = await second.reply()
    assert (reply.status, reply.up_acked) == (LegStatus.OK, 10)
    await send(second.sock, stream[FirstFlight(begins_at, flight).leg_begins_at(10) + flight :])
    assert await read_exactly(remote, 10) == stream[10:]


async def test_unread_bytes_in_the_old_leg_are_drained_before_the_new_one(proxy: RunningProxy, server: Server):
    """Both directions have bytes that a kernel has ACKed and nobody has read when the leg is replaced."""
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    down, up = pattern(40_000, 1), pattern(40_000, 2)
    await send(remote, down[:30_000])
    await eventually(lambda: bytes_unread(leg.sock) == 30_000)
    # The server does not read, so upstream bytes pile up in the proxy and in its socket of the old leg.
    blocker = await fill_up(leg.sock)
    received = bytes_unread(leg.sock)
    second = await node.reconnect(session, 2, received=received, upstream_from=0)
    reply = await second.reply()
    assert reply.status is LegStatus.OK
    assert reply.down_from == 30_000
    assert 0 < reply.up_acked <= len(blocker)
    assert await read_exactly(leg.sock, reply.down_from) == down[:30_000]
    await send(remote, down[30_000:])
    assert await read_exactly(second.sock, 10_000) == down[30_000:]
    # From A = 0 again: everything that the proxy has already is skipped.
    whole = blocker + up
    sender = asyncio.create_task(send_everything(second.sock, whole))
    assert hashlib.sha256(await read_exactly(remote, len(whole))).digest() == hashlib.sha256(whole).digest()
    await sender
    second.sock.shutdown(1)
    assert await read_all(remote) == b""


async def fill_up(sock) -> bytes:
    """Write until nothing more is taken; returns what was."""
    written = bytearray()
    block = pattern(100_000, 3)
    for _ in range(400):
        try:
            written += block[: sock.send(block)]
        except BlockingIOError:
            await asyncio.sleep(0.02)
            try:
                written += block[: sock.send(block)]
            except BlockingIOError:
                break
    return bytes(written)


async def send_everything(sock, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def test_a_handover_lets_the_old_leg_deliver_what_was_sent_on_it(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    await send(leg.sock, b"old up, ")
    await send(remote, b"old down, ")
    await eventually(lambda: bytes_unread(leg.sock) == 10)
    new = await node.reconnect(session, 2, received=0, upstream_from=8, early=b"new up", handover_from=1)
    reply = await new.reply()
    assert (reply.status, reply.down_from) == (LegStatus.OK, 10)
    await send(remote, b"new down")
    assert await read_exactly(leg.sock, 10) == b"old down, "
    assert await read_exactly(new.sock, 8) == b"new down"
    leg.sock.shutdown(1)
    assert await read_exactly(remote, 14) == b"old up, new up"


@pytest.mark.parametrize("handover_from", [1, 3], ids=["displaced", "never was"])
async def test_a_handover_needs_the_live_leg_that_it_names(proxy: RunningProxy, server: Server, handover_from: int):
    node = await proxy.node()
    session, _ = await node.open_session(server.endpoint)
    remote = await server.accept()
    second = await node.reconnect(session, 2, 0, 0)
    assert (await second.reply()).status is LegStatus.OK
    third = await node.reconnect(session, 3, 0, 0, handover_from=handover_from)
    assert (await third.reply()).status is LegStatus.LEG_GONE
    assert third.verified
    await send(remote, b"on")
    assert await read_exactly(second.sock, 2) == b"on"
    reset(second.sock)
    await eventually(lambda: bool(proxy.events("session_parked")))
    parked = await node.reconnect(session, 4, 2, 0, handover_from=2)
    assert (await parked.reply()).status is LegStatus.LEG_GONE


async def test_many_moves_under_load_lose_no_byte(proxy: RunningProxy, server: Server):
    """Moves at random moments, with bytes in flight both ways and with any basepoint that a client may choose."""
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    size = 3_000_000
    down, up = pattern(size, 4), pattern(size, 5)
    sending = asyncio.create_task(send_everything(remote, down))
    collecting = asyncio.create_task(read_exactly(remote, size))
    writing = asyncio.create_task(send_everything(leg.sock, up))
    dice = random.Random(7)
    got = bytearray()
    up_acked = 0
    for generation in range(2, 12):
        got += await read_exactly(leg.sock, dice.randrange(1, 200_000))
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        received = len(got) + bytes_unread(leg.sock)
        upstream_from = dice.randrange(up_acked + 1)
        new = await node.reconnect(session, generation, received, upstream_from)
        # Together with the request, before the reply tells what the proxy has.
        writing = asyncio.create_task(send_everything(new.sock, up[upstream_from:]))
        reply = await new.reply()
        assert reply.status is LegStatus.OK
        assert reply.down_from >= received
        assert up_acked <= reply.up_acked <= size
        up_acked = reply.up_acked
        got += await read_exactly(leg.sock, reply.down_from - len(got))
        leg = new
    got += await read_exactly(leg.sock, size - len(got))
    assert bytes(got) == down
    assert await asyncio.wait_for(collecting, 10) == up
    await asyncio.gather(sending, writing)


async def test_the_old_leg_is_displaced_only_by_an_authenticated_one(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    for attempt in (
        await node.reconnect(session, 2, 0, 0, key_up=bytes(32)),
        await node.reconnect(session, 2, 0, 0, expires_ms=1),
        await node.reconnect(session, 2, 0, 0, leg_number=leg.request.leg_number),
    ):
        assert (await attempt.reply()).status in (LegStatus.BAD_MAC, LegStatus.EXPIRED, LegStatus.REPLAYED)
    await send(remote, b"still here")
    assert await read_exactly(leg.sock, 10) == b"still here"


async def test_connect_repeated_while_connected_starts_again_from_the_beginning(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    await send(remote, b"banner")
    await eventually(lambda: bytes_unread(leg.sock) == 6)
    again = await node.connect(session, server.endpoint, generation=2, early=b"hello")
    reply = await again.reply()
    assert (reply.status, reply.generation) == (LegStatus.OK, 2)
    # The first leg's kernel has acknowledged the banner, so it is there and nowhere else.
    assert reply.down_from == 6
    assert await read_exactly(leg.sock, 6) == b"banner"
    assert await read_exactly(remote, 5) == b"hello"
    await send(remote, b"!")
    assert await read_exactly(again.sock, 1) == b"!"


async def test_connect_with_the_same_id_and_another_destination_is_refused(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    other = await node.connect(session, Endpoint.of("127.0.0.1", 9), generation=2)
    reply = await other.reply()
    assert (reply.status, reply.socks_reply, other.verified) == (LegStatus.REFUSED, 0x02, True)
    remote = await server.accept()
    await send(remote, b"x")
    assert await read_exactly(leg.sock, 1) == b"x"


@pytest.mark.parametrize("generation", [0, 1], ids=["lower", "equal"])
async def test_a_generation_that_does_not_rise_is_stale(proxy: RunningProxy, server: Server, generation: int):
    node = await proxy.node()
    session, _ = await node.open_session(server.endpoint)
    moved = await node.reconnect(session, 2, 0, 0)
    assert (await moved.reply()).status is LegStatus.OK
    stale = await node.reconnect(session, generation + 1, 0, 0)
    reply = await stale.reply()
    assert (reply.status, reply.generation, stale.verified) == (LegStatus.STALE_GENERATION, 2, True)


async def test_of_racing_reconnects_the_highest_generation_wins(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, _ = await node.open_session(server.endpoint)
    remote = await server.accept()
    legs = await asyncio.gather(*(node.reconnect(session, generation, 0, 0) for generation in (3, 5, 2, 4)))
    replies = await asyncio.gather(*(leg.reply() for leg in legs))
    by_generation = {leg.request.generation: reply.status for leg, reply in zip(legs, replies, strict=True)}
    assert by_generation[5] is LegStatus.OK
    assert set(by_generation.values()) <= {LegStatus.OK, LegStatus.STALE_GENERATION}
    winner = next(leg for leg in legs if leg.request.generation == 5)
    await send(remote, b"to the winner")
    assert await read_exactly(winner.sock, 13) == b"to the winner"


async def test_query_changes_nothing(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    await send(leg.sock, b"four")
    assert await read_exactly(remote, 4) == b"four"
    reply = await node.query(session)
    assert (reply.status, reply.generation, reply.up_acked) == (LegStatus.OK, 1, 4)
    await send(remote, b"live")
    assert await read_exactly(leg.sock, 4) == b"live"


@pytest.mark.parametrize(
    ("received", "upstream_from"), [(6, 0), (0, 5), (2**62, 0), (0, 2**62)], ids=["R", "A", "huge R", "huge A"]
)
async def test_offsets_that_lie_are_refused_and_the_session_lives(
    proxy: RunningProxy, server: Server, received: int, upstream_from: int
):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    await send(leg.sock, b"four")
    await read_exactly(remote, 4)
    await send(remote, b"fives")
    await read_exactly(leg.sock, 5)
    liar = await node.reconnect(session, 2, received, upstream_from)
    reply = await liar.reply()
    assert (reply.status, liar.verified) == (LegStatus.BAD_OFFSETS, True)
    await send(remote, b"on")
    assert await read_exactly(leg.sock, 2) == b"on"
    await send(leg.sock, b"and")
    assert await read_exactly(remote, 3) == b"and"
    honest = await node.reconnect(session, 2, 7, 7)
    assert (await honest.reply()).status is LegStatus.OK


async def test_server_reset_is_told_and_passed_on(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    reset(await server.accept())
    assert await node.channels[0].hear(SessionEnded) == SessionEnded(session, EndReason.SERVER_RESET)
    with pytest.raises(ConnectionResetError):
        await receive(leg.sock)
    late = await node.reconnect(session, 2, 0, 0)
    assert (await late.reply()).status is LegStatus.ENDED_RESET
    assert late.verified


async def test_a_leg_that_is_reset_parks_the_session_and_the_server_notices_nothing(
    proxy: RunningProxy, server: Server
):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    reset(leg.sock)
    assert (await node.channels[0].hear(Parked)).sessions == ((session, 1),), "the mobile's end may not know"
    assert proxy.events("session_parked")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(remote, 1), 0.1)
    assert (await node.query(session)).status is LegStatus.OK


async def test_a_parked_session_expires(start_proxy: StartProxy, server: Server):
    proxy = await start_proxy(detach_grace_s=0.2)
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    reset(leg.sock)
    with pytest.raises(ConnectionResetError):
        await receive(remote)
    assert await node.channels[0].hear(SessionEnded) == SessionEnded(session, EndReason.EXPIRED)
    assert (await node.query(session)).status is LegStatus.ENDED_EXPIRED


async def test_a_session_that_was_resumed_does_not_expire(start_proxy: StartProxy, server: Server):
    proxy = await start_proxy(detach_grace_s=0.3)
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    reset(leg.sock)
    await eventually(lambda: bool(proxy.events("session_parked")))
    second = await node.reconnect(session, 2, 0, 0)
    assert (await second.reply()).status is LegStatus.OK
    await asyncio.sleep(0.5)
    await send(remote, b"alive")
    assert await read_exactly(second.sock, 5) == b"alive"


async def test_park_stops_the_leg_that_it_names_and_no_newer_one(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    channel = node.channels[0]
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    unknown = SessionId.generate()
    await channel.say(Park((ParkedLeg(session, 1, 0), ParkedLeg(unknown, 1, 0))))
    assert (await channel.hear(Parked)).sessions == ((session, 1),)
    await send(remote, b"held")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(leg.sock, 1), 0.1)
    second = await node.reconnect(session, 2, 0, 0)
    assert (await second.reply()).status is LegStatus.OK
    await channel.say(Park((ParkedLeg(session, 1, 0),)))
    assert (await channel.hear(Parked)).sessions == ()
    assert await read_exactly(second.sock, 4) == b"held"
    for generation, parked in ((2, ((session, 2),)), (1, ()), (2, ((session, 2),))):
        await channel.say(Park((ParkedLeg(session, generation, 4),)))
        assert (await channel.hear(Parked)).sessions == parked


async def test_close_with_reset_resets_the_server_and_can_be_repeated(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    assert (await node.close_session(session, 1)).status is LegStatus.OK
    for sock in (remote, leg.sock):
        with pytest.raises(ConnectionResetError):
            await receive(sock)
    assert (await node.close_session(session, 1)).status is LegStatus.OK
    late = await node.reconnect(session, 2, 0, 0)
    assert (await late.reply()).status is LegStatus.ENDED_CLOSED


async def test_close_of_an_older_generation_is_stale(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, _ = await node.open_session(server.endpoint)
    second = await node.reconnect(session, 2, 0, 0)
    assert (await second.reply()).status is LegStatus.OK
    reply = await node.close_session(session, 1)
    assert (reply.status, reply.generation) == (LegStatus.STALE_GENERATION, 2)


async def test_graceful_close_gives_the_server_everything_and_a_fin(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    session, leg = await node.open_session(server.endpoint)
    remote = await server.accept()
    # So little that the proxy takes it all, so much that the server, who does not read, has not got it.
    written = pattern(400_000, 3)
    await send(leg.sock, written)
    async with asyncio.timeout(10):
        while (await node.query(session)).up_acked < len(written):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert bytes_unread(remote) < len(written) // 2
    for wrong in (len(written) + 1, len(written) - 1):
        assert (await node.close_session(session, 1, CloseMode.GRACEFUL, wrong)).status is LegStatus.BAD_OFFSETS
    assert (await node.close_session(session, 1, CloseMode.GRACEFUL, len(written))).status is LegStatus.OK
    reset(leg.sock)
    discarded = asyncio.create_task(send_everything(remote, pattern(2_000_000)))
    assert await read_all(remote) == written
    await discarded
    remote.close()
    assert (await node.query(session)).status is LegStatus.ENDED_CLOSED


async def test_destinations_that_fail_are_refused_with_the_reason(proxy: RunningProxy):
    node = await proxy.node()

    async def outcome(destination: str) -> tuple[LegStatus, int]:
        leg = await node.connect(SessionId.generate(), Endpoint.parse(destination))
        reply: LegReply = await leg.reply()
        assert leg.verified
        return reply.status, reply.socks_reply

    assert await outcome("127.0.0.1:1") == (LegStatus.REFUSED, 0x05)
    assert await outcome("10.1.2.3:80") == (LegStatus.REFUSED, 0x02)
    assert await outcome("name.invalid:80") == (LegStatus.REFUSED, 0x04)
    replies = [entry["reply"] for entry in proxy.events("destination_failed")]
    assert replies == ["connection_refused", "not_allowed", "host_unreachable"]


async def test_a_refused_connect_repeated_gets_the_same_refusal(proxy: RunningProxy):
    node = await proxy.node()
    session, destination = SessionId.generate(), Endpoint.parse("127.0.0.1:1")
    for generation in (1, 2):
        leg = await node.connect(session, destination, generation=generation)
        reply = await leg.reply()
        assert (reply.status, reply.socks_reply) == (LegStatus.REFUSED, 0x05)
    assert len(proxy.events("destination_failed")) == 1


async def test_bind_is_not_supported(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    leg = await node.ask(Bind(destination=server.endpoint, **node.fields(SessionId.generate(), 1)))
    reply = await leg.reply()
    assert (reply.status, reply.socks_reply) == (LegStatus.REFUSED, 0x07)


async def test_a_dead_association_is_told_without_a_mac(proxy: RunningProxy, server: Server):
    node = await proxy.node()
    stranger = MobileNode(proxy.endpoint, node.link)
    stranger.welcome = node.welcome
    proxy.nodes.append(stranger)
    leg = await stranger.connect(SessionId.generate(), server.endpoint)
    reply = await leg.reply()
    assert (reply.status, leg.verified) == (LegStatus.UNKNOWN_ASSOCIATION, False)
