"""What a server that has had a time-out hears first when another leg stands."""

from __future__ import annotations

import asyncio
import struct
import time
from types import SimpleNamespace
from typing import Any

import pytest

from msocks.datapath.splice.events import HeldPacket
from msocks.datapath.splice.held_bytes import HeldBytes
from msocks.datapath.splice.layout import NO_FIN, SERVER, LegFlag, Session, SessionFlag
from msocks.datapath.splice.parked import MOST_BYTES, MOST_SEGMENTS, Parking
from msocks.datapath.splice.residual import LEAST_S, ResidualClock

BASE = 77_000


class Outage:
    """A session whose server has sent up to 9000, and whose mobile has acknowledged 1000."""

    def __init__(self, held: HeldBytes | None = None) -> None:
        self.said: list[bytes] = []
        self.held = held or HeldBytes()
        output = SimpleNamespace(send=self.said.append)
        reactor = SimpleNamespace(loop=asyncio.get_running_loop())
        self.clock = ResidualClock(reactor.loop)
        host: Any = SimpleNamespace(reactor=reactor, output=output, residuals=self.clock, held=self.held)
        self.session = Session()
        for leg in self.session.legs:
            for address in (leg.local, leg.remote):
                address[10] = address[11] = 0xFF
        self.session.legs[SERVER].flags = LegFlag.SACK
        self.session.legs[SERVER].in_base = BASE
        self.session.down.fin = NO_FIN
        self.session.down.sent, self.session.down.acked, self.session.down.edge = 9000, 1000, 60_000
        self.parking = Parking(host, self.session)

    def hold(self, offset: int, size: int, ago_s: float = 0.0) -> None:
        packet = HeldPacket()
        packet.event.offset = offset
        packet.copied = packet.segment = size
        packet.arrived_ns = time.monotonic_ns() - int(ago_s * 1e9)
        self.parking.on_held(packet)

    def heard(self) -> list[tuple[int, int]]:
        """What was acknowledged to the server, and the window that it was offered behind."""
        found = []
        for packet in self.said:
            acknowledged, window = struct.unpack_from("!I2xH", packet, 28)
            found.append((acknowledged - BASE, window))
        self.said.clear()
        return found


@pytest.mark.parametrize("begins", [1501, 4000, 9000])
async def test_it_does_not_take_its_time_out_for_spurious(begins: int) -> None:
    """It hears the ACK of what it has sent again, alone, and has no room for anything new (RFC 5682 section 3.1)."""
    outage = Outage()
    outage.hold(1000, 500)
    outage.parking.prepare(begins)
    assert outage.heard() == []
    outage.parking.announce()
    outage.parking.announce()
    assert outage.heard() == [(1500, 7500)]
    assert outage.session.down.acked == begins


@pytest.mark.parametrize(("offset", "begins"), [(1000, 1000), (1000, 1500), (2000, 4000)])
async def test_else_it_hears_where_the_leg_begins_and_nothing_before(offset: int, begins: int) -> None:
    outage = Outage()
    outage.hold(offset, 500)
    outage.parking.prepare(begins)
    outage.parking.announce()
    assert outage.heard() == []


def resumed(begins: int, mobile_edge: int) -> Outage:
    """A later leg stands, and the first that its server has sent behind 9000 is held."""
    outage = Outage()
    outage.session.down.acked = min(begins, 1000)
    outage.session.mobile_edge = mobile_edge
    outage.parking.prepare(begins)
    outage.parking.resume(1)
    assert outage.heard() == []
    outage.hold(9000, 500)
    return outage


@pytest.mark.parametrize(("mobile_edge", "window"), [(24_000, 20_000), (90_000, 32_768)])
async def test_a_server_is_let_say_a_first_flight_again_by_a_late_ack(mobile_edge: int, window: int) -> None:
    """What is held is reported behind an ACK that was heard before; the new leg's window limits what that lets out."""
    outage = resumed(4000, mobile_edge)
    late = next(packet for packet in outage.said if struct.unpack_from("!I", packet, 28)[0] == BASE + 3999)
    assert late[44:52] == struct.pack("!II", BASE + 9000, BASE + 9500)
    assert outage.heard()[:4] == [(4000, 0), (4000, window), (3999, window + 1), (4000, window)]
    outage.hold(9500, 500)
    assert 3999 not in [acknowledged for acknowledged, _window in outage.heard()]
    outage.parking.prepare(5000)
    outage.parking.resume(2)
    assert 4999 in [acknowledged for acknowledged, _window in outage.heard()]
    outage.parking.close()


@pytest.mark.parametrize(("begins", "mobile_edge"), [(0, 40_000), (4000, 4000)])
async def test_without_anything_acknowledged_or_a_window_there_is_no_late_ack(begins: int, mobile_edge: int) -> None:
    outage = resumed(begins, mobile_edge)
    assert outage.heard()[0] == (begins, 60_000 - begins)
    outage.parking.close()


def delivered(outage: Outage) -> list[int]:
    """Sizes of what was said to the mobile since it was looked at last."""
    found = [len(packet) - 40 for packet in outage.said if len(packet) > 52]  # a selective ACK has 52
    outage.said.clear()
    return found


@pytest.mark.parametrize(("round_trip_ms", "stale"), [(50, True), (2000, False)])
async def test_what_was_held_for_long_and_sent_once_is_not_delivered(round_trip_ms: int, stale: bool) -> None:
    """But the first segment is, and what the server has sent again: their ACKs tell it of no round trip."""
    outage = Outage()
    outage.session.mobile_edge = 60_000
    outage.session.legs[1].round_trip_ms = round_trip_ms
    outage.hold(1000, 100, ago_s=3.0)
    outage.hold(2000, 200, ago_s=3.0)
    outage.hold(3000, 300, ago_s=3.0)
    outage.hold(3000, 300, ago_s=2.5)
    outage.hold(4000, 400, ago_s=0.1)
    outage.parking.prepare(1000)
    outage.parking.resume(1)
    assert delivered(outage) == ([100, 300, 400] if stale else [100, 200, 300, 400])
    outage.parking.close()


async def test_another_leg_brings_what_was_said_on_the_one_before() -> None:
    outage = Outage()
    outage.session.mobile_edge = 60_000
    outage.hold(1000, 100)
    for number in (1, 2):
        outage.parking.prepare(1000)
        outage.parking.resume(number)
        assert delivered(outage) == [100]
    outage.parking.close()


async def test_the_first_segment_has_its_place_whatever_is_held() -> None:
    outage = Outage()
    outage.session.down.sent = 90_000
    for number in range(MOST_SEGMENTS):
        outage.hold(2000 + 10 * number, 10)
    outage.hold(1000, 500)
    outage.parking.prepare(4000)
    outage.parking.announce()
    assert outage.heard() == [(1500, 65535)]


async def test_what_was_acknowledged_takes_no_place() -> None:
    outage = Outage()
    outage.session.down.sent = 90_000
    for number in range(MOST_SEGMENTS):
        outage.hold(1000 + 10 * number, 10)
    outage.session.down.acked = 1000 + 10 * MOST_SEGMENTS
    outage.hold(5000, 500)
    outage.parking.prepare(5600)
    outage.session.down.acked = 5000
    outage.parking.prepare(5600)
    outage.parking.announce()
    assert outage.heard() == [(5500, 65535)]


async def test_the_window_is_opened_again_and_again_until_the_server_sends() -> None:
    """The ACK that opens it may be lost, and a server that waits for it asks ever less often."""
    outage = Outage()
    outage.session.flags = SessionFlag.CLOSED_WINDOW
    outage.session.down.acked = outage.session.down.sent = 9000
    outage.parking.prepare(9000)
    outage.parking.resume(1)
    assert outage.heard() == [(9000, 51_000)]
    await asyncio.sleep(1.6 * LEAST_S)
    assert outage.heard() == [(9000, 51_000)]
    outage.session.down.packets += 1
    await asyncio.sleep(2 * LEAST_S)
    assert outage.heard() == []
    outage.clock.close()


async def test_what_is_held_is_bounded_for_a_session_and_for_all_and_nothing_of_it_is_acknowledged() -> None:
    held, size = HeldBytes(), 16_000
    outages = [Outage(held) for _ in range(MOST_BYTES // (MOST_SEGMENTS * size) + 2)]
    for outage in outages:
        before = held.held
        for number in range(MOST_SEGMENTS + 5):
            outage.hold(1000 + number * size, size)
        assert held.held - before <= MOST_SEGMENTS * size
        assert outage.heard() == []
        assert outage.session.down.acked == 1000
    assert MOST_BYTES - size < held.held <= MOST_BYTES
    for outage in outages:
        outage.parking.close()
        outage.clock.close()
    assert held.held == 0
