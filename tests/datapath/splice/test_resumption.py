"""What a server that has had a time-out hears first when another leg stands."""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from msocks.datapath.splice.events import HeldPacket
from msocks.datapath.splice.held_bytes import HeldBytes
from msocks.datapath.splice.layout import NO_FIN, SERVER, LegFlag, Session
from msocks.datapath.splice.parked import MOST_SEGMENTS, Parking

BASE = 77_000


class Outage:
    """A session whose server has sent up to 9000, and whose mobile has acknowledged 1000."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        output = SimpleNamespace(send=self.said.append)
        reactor = SimpleNamespace(loop=asyncio.get_running_loop())
        host: Any = SimpleNamespace(reactor=reactor, output=output, residuals=None, held=HeldBytes())
        self.session = Session()
        for address in (self.session.legs[SERVER].local, self.session.legs[SERVER].remote):
            address[10] = address[11] = 0xFF
        self.session.legs[SERVER].flags = LegFlag.SACK
        self.session.legs[SERVER].in_base = BASE
        self.session.down.fin = NO_FIN
        self.session.down.sent, self.session.down.acked, self.session.down.edge = 9000, 1000, 60_000
        self.parking = Parking(host, self.session)

    def hold(self, offset: int, size: int) -> None:
        packet = HeldPacket()
        packet.event.offset = offset
        packet.copied = packet.segment = size
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
