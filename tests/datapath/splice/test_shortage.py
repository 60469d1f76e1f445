"""No room: new sessions are relayed and say why, established ones go on, and nothing is lost for ever."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from tests.datapath.bench import REPLY, Owner, eventually, read, write
from tests.datapath.networks import over_veth, splice

from msocks.datapath.interface import Attachment, Conduit
from msocks.datapath.splice import libbpf, loader
from msocks.datapath.splice.datapath import SpliceDatapath
from msocks.datapath.splice.layout import SERVER, SessionState
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.tables import Tables
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.transport.reactor import Reactor

_RING_BYTES = 1 << 20
_EVENT_BYTES = 32  # with the header of its record


class Talk:
    """One session, whose two ends are the test's."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.mobile, leg = network.mobile_leg()
        self.server, server_leg = network.server_leg(leg)
        self.owner = Owner()
        self.sockets = [self.mobile, self.server]
        self.conduit: Conduit = network.datapath.open(server_leg, self.owner, resumable=True)
        self.carriage = self.conduit.carriage_for(leg)
        self.conduit.attach(Attachment(leg, 1, REPLY, 0, 0))

    async def echo(self) -> None:
        for this, other in ((self.mobile, self.server), (self.server, self.mobile)):
            await write(this, b"hello")
            assert await read(other, 5) == b"hello"

    def second_leg(self) -> socket.socket:
        """Bring one, as a reconnect does, up to `attach`."""
        self.conduit.stop_leg()
        mobile: socket.socket
        mobile, leg = self._network.mobile_leg()
        self.sockets.append(mobile)
        assert self.conduit.carriage_for(leg).kind is DatapathKind.SPLICE
        state = self.conduit.state()
        self.conduit.attach(Attachment(leg, 2, REPLY, state.down_acknowledged, state.up_taken))
        return mobile


@pytest.fixture
def sizes() -> dict[str, int]:
    """Of tables that are smaller than usual, by name."""
    return {}


@pytest.fixture
def room() -> dict[str, Any]:
    """What `open_splice` is told otherwise than usual."""
    return {}


@pytest.fixture
async def network(sizes: dict[str, int], room: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    class Object(libbpf.BpfObject):
        def set_size(self, name: str, entries: int) -> None:
            super().set_size(name, sizes.get(name, entries))

    monkeypatch.setattr(loader, "BpfObject", Object)
    reactor = Reactor(asyncio.get_running_loop())
    with over_veth(lambda reactor: splice(reactor, **room))(reactor) as made:
        yield made
    reactor.close()


@pytest.fixture
async def talks(network: Any) -> AsyncIterator[list[Talk]]:
    made: list[Talk] = []
    yield made
    for talk in made:
        talk.conduit.close(reset=True)
        for sock in talk.sockets:
            sock.close()


def complaints(log: list[Any]) -> list[tuple[str, bool]]:
    return [(line["what"], bool(line["remedy"])) for line in log if line["event"] == "no_room"]


@pytest.mark.parametrize("sizes", [{"flows": 3}])
async def test_the_table_of_flows_is_full(network: Any, talks: list[Talk]):
    with structlog.testing.capture_logs() as log:
        for _ in range(3):
            talks.append(Talk(network))
            assert await read(talks[-1].mobile, len(REPLY)) == REPLY
        for talk in talks:
            await talk.echo()
        # The first has two, and the one that is left is no room for a session.
        assert [(talk.conduit.kind, talk.conduit.reason) for talk in talks] == [
            (DatapathKind.SPLICE, DatapathReason.UNSPECIFIED),
            (DatapathKind.RELAY, DatapathReason.NO_ROOM),
            (DatapathKind.RELAY, DatapathReason.NO_ROOM),
        ]
        # What the reply says was known before it was written.
        assert [talk.carriage.kind for talk in talks] == [talk.conduit.kind for talk in talks]
        assert complaints(log) == [("flows", True)]  # not for each of them
    tables: Tables = network.datapath.tables
    assert tables.flow_count() == 2


@pytest.mark.parametrize("sizes", [{"flows": 2}])
async def test_a_leg_for_which_there_is_no_room_is_given_up_and_the_session_waits(network: Any, talks: list[Talk]):
    talk = Talk(network)
    talks.append(talk)
    assert await read(talk.mobile, len(REPLY)) == REPLY
    await talk.echo()
    mobile = talk.second_leg()
    await eventually(lambda: len(talk.owner.legs_ended) == 1)
    assert talk.owner.legs_ended[0][0] == 2
    with pytest.raises(ConnectionResetError):
        await read(mobile, 1)
    assert talk.owner.servers_lost == []
    assert network.datapath.tables.flow_count() == 2


@pytest.mark.parametrize("sizes", [{"opening": 1}])
async def test_the_table_of_openings_is_full(network: Any, talks: list[Talk]):
    with structlog.testing.capture_logs() as log:
        waiting = [network.mobile_leg() for _ in range(2)]
        opened = [network.server_leg(leg) for _, leg in waiting]
        for (mobile, leg), (server, server_leg) in zip(waiting, opened, strict=True):
            conduit = network.datapath.open(server_leg, Owner(), resumable=True)
            carriage = conduit.carriage_for(leg)
            conduit.attach(Attachment(leg, 1, REPLY, 0, 0))
            assert await read(mobile, len(REPLY)) == REPLY
            await write(mobile, b"hello")
            assert await read(server, 5) == b"hello"
            assert carriage.kind is (DatapathKind.SPLICE if mobile is waiting[0][0] else DatapathKind.RELAY)
            conduit.close(reset=True)
            mobile.close()
            server.close()
        assert complaints(log) == [("opening", True)]


async def fill(network: Any, talks: list[Talk], what: str) -> None:
    """Two sessions have all the room that there is; two more are relayed, and the first two do not notice."""
    with structlog.testing.capture_logs() as log:
        for _ in range(4):
            talks.append(Talk(network))
            assert await read(talks[-1].mobile, len(REPLY)) == REPLY
        for talk in talks:
            await talk.echo()
        spliced = (DatapathKind.SPLICE, DatapathReason.UNSPECIFIED)
        relayed = (DatapathKind.RELAY, DatapathReason.NO_ROOM)
        assert [(talk.conduit.kind, talk.conduit.reason) for talk in talks] == [spliced, spliced, relayed, relayed]
        assert complaints(log) == [(what, True)]


@pytest.mark.parametrize("room", [{"slots": 2}])
async def test_the_table_of_sessions_is_full(network: Any, talks: list[Talk]):
    """The one that ended first gives up its place, as TIME-WAIT is cut short."""
    await fill(network, talks, "slots")
    talks[0].conduit.close(reset=True)
    await asyncio.sleep(1.1)  # for a second it lingers in any case
    talks.append(Talk(network))
    assert await read(talks[-1].mobile, len(REPLY)) == REPLY
    for talk in talks[1:]:
        await talk.echo()
    assert talks[-1].conduit.kind is DatapathKind.SPLICE


@pytest.mark.parametrize("room", [{"ports": PortRange(16384, 16385)}])
async def test_every_port_toward_a_server_is_in_use(network: Any, talks: list[Talk]):
    await fill(network, talks, "ports")


async def test_nothing_is_kept_of_a_session_that_has_expired(network: Any, talks: list[Talk]):
    """However many there are, as long as places are free."""
    datapath: SpliceDatapath = network.datapath
    for _ in range(3):
        talks.append(Talk(network))
        assert await read(talks[-1].mobile, len(REPLY)) == REPLY
        await talks[-1].echo()
        talks[-1].conduit.close(reset=True)
    assert len(datapath.server_legs._ended) == 3
    for slot in tuple(datapath.tables.taken_slots()):
        datapath.tables.session(slot).last_ns = 1
    await eventually(lambda: not datapath.server_legs._ended)
    assert datapath.tables.is_empty()
    assert not datapath._conduits


async def test_events_that_were_lost_are_found(network: Any, talks: list[Talk]):
    """The daemon stands still, the ring buffer fills up, and meanwhile sessions end."""
    datapath: SpliceDatapath = network.datapath
    for _ in range(3):
        talks.append(Talk(network))
        assert await read(talks[-1].mobile, len(REPLY)) == REPLY
        await talks[-1].echo()
    finished, reset, vanished = talks
    tables = datapath.tables
    sessions = [tables.session(slot) for slot in tables.taken_slots()]
    free, ports = tables.free_slots, len(datapath._ports)

    # A packet for a session that is over is told, again and again.
    program = datapath._program.program("splice_ingress")
    vanished.conduit.close(reset=True)
    _fill(program, sessions[2])
    lost = tables.lost_events()
    assert lost
    for this in (finished.mobile, finished.server):
        this.shutdown(socket.SHUT_WR)
    for this in (finished.mobile, finished.server):
        _block_until(lambda this=this: this.recv(1) == b"")
    reset.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    reset.server.close()
    sessions[2].last_ns = 1
    _block_until(lambda: sessions[2].state == SessionState.FREE)
    _block_until(lambda: sessions[0].finished and sessions[1].state == SessionState.RESET)
    assert tables.lost_events() >= lost + 3

    await asyncio.wait_for(finished.owner.finished.wait(), 5)
    await eventually(lambda: bool(reset.owner.servers_lost))
    await eventually(lambda: tables.free_slots == free + 1)
    assert len(datapath._ports) == ports - 1


def _block_until(condition: Any) -> None:
    """Without the event loop."""
    deadline = time.monotonic() + 5
    while True:
        try:
            if condition():
                return
        except BlockingIOError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _fill(program: int, session: Any) -> None:
    """Let the programs tell of a packet until there is no more room."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    leg = session.legs[SERVER]
    source, destination = (socket.inet_ntoa(bytes(address)[12:]) for address in (leg.remote, leg.local))
    ports = [(port & 0xFF) << 8 | port >> 8 for port in (leg.remote_port, leg.local_port)]
    packet = Ether(dst="00:00:00:00:00:00") / IP(src=source, dst=destination)
    data = bytes(packet / TCP(sport=ports[0], dport=ports[1], flags="A"))
    for _ in range(_RING_BYTES // _EVENT_BYTES // 8000 + 1):
        libbpf.run(program, data, repeat=8000)
