"""Connections that come in at a proxy that splices: they are relayed, and the operator is told why."""

from __future__ import annotations

import asyncio
import json
import socket

from tests.end_to_end.conftest import MSOCKS, PORT, Field
from tests.end_to_end.ends import PATIENCE_S, entered, read
from tests.end_to_end.splice_fixtures import spliced
from tests.proxy.mobile_node import MobileNode, read_exactly, send

from msocks.protocol.inbound import Incoming, Listen, Listening
from msocks.protocol.leg import DatapathKind, DatapathReason, LegStatus
from msocks.transport.kernel import bytes_unacknowledged
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint

__all__ = ["spliced"]


def test_a_peer_of_the_server_side_reaches_a_client_of_the_mobile_side(spliced: Field) -> None:
    lab = spliced.lab
    with entered(lab, "mobile"):
        client = socket.socket()
    with entered(lab, "server"):
        peer = socket.socket()
    with client, peer:
        client.settimeout(PATIENCE_S)
        peer.settimeout(PATIENCE_S)
        client.connect((lab.proxy.ipv4, PORT))
        client.sendall(b"\x05\x01\x00")
        assert read(client, 2) == b"\x05\x00"
        client.sendall(b"\x05\x02\x00\x01" + socket.inet_aton(lab.server.ipv4) + bytes(2))
        first = read(client, 10)
        assert first[:4] == b"\x05\x00\x00\x01"
        peer.connect((socket.inet_ntoa(first[4:8]), int.from_bytes(first[8:], "big")))
        peer.sendall(b"banner")
        host, port = peer.getsockname()
        assert read(client, 10) == b"\x05\x00\x00\x01" + socket.inet_aton(host) + port.to_bytes(2, "big")
        assert read(client, 6) == b"banner"
        client.sendall(bytes(300_000))
        assert read(peer, 300_000) == bytes(300_000)
        shown = lab.proxy.run([MSOCKS, "sessions", "--state", str(spliced.state), "--json"]).stdout
        (session,) = json.loads(shown)["sessions"]
        assert (session["datapath"], session["datapath_reason"]) == ("relay", "accepted")
        assert session["destination"] == f"{host}:{port}"


async def take_and_move(field: Field, peer: socket.socket) -> None:
    """A mobile node takes the peer's connection, with upstream bytes behind its requests, and moves it."""
    node = MobileNode(Endpoint.of(field.lab.proxy.ipv4, PORT), AccessLink.parse(field.access.read_text().strip()))
    try:
        channel = await node.associate()
        await channel.say(Listen(1, once=True))
        answer = await channel.hear(Listening)
        assert answer.bound is not None
        await asyncio.to_thread(peer.connect, (field.lab.proxy.ipv4, answer.bound.port))
        await asyncio.to_thread(peer.sendall, b"banner")
        incoming = await channel.hear(Incoming)
        first = await node.reconnect(incoming.session, 1, 0, 0, early=b"early, ")
        reply = await first.reply()
        assert (reply.status, reply.datapath, reply.datapath_reason) == (
            LegStatus.OK,
            DatapathKind.RELAY,
            DatapathReason.ACCEPTED,
        )
        await send(first.sock, b"later")
        assert await asyncio.to_thread(read, peer, 12) == b"early, later"
        assert await read_exactly(first.sock, 6) == b"banner"
        async with asyncio.timeout(5):  # nothing holds the proxy's ACKs back any more
            while bytes_unacknowledged(first.sock):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        second = await node.reconnect(incoming.session, 2, 6, 12, early=b" and moved")
        assert (await second.reply()).status is LegStatus.OK
        assert await asyncio.to_thread(read, peer, 10) == b" and moved"
        await asyncio.to_thread(peer.sendall, bytes(300_000))
        assert await read_exactly(second.sock, 300_000) == bytes(300_000)
    finally:
        node.close()


def test_a_mobile_node_takes_a_connection_and_moves_it(spliced: Field) -> None:
    with entered(spliced.lab, "server"):
        peer = socket.socket()
    with peer, entered(spliced.lab, "mobile"):
        peer.settimeout(PATIENCE_S)
        asyncio.run(take_and_move(spliced, peer))
