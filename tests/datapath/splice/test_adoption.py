"""What an earlier process has left in the tables, as the next one finds it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from tests.datapath.splice.loading import loaded, own_host

from msocks.datapath.splice.adoption import clear_handshakes, freed_just_now, survivor_of, what_is_missing
from msocks.datapath.splice.entries import key_of
from msocks.datapath.splice.layout import (
    NO_FIN,
    SERVER,
    LegFlag,
    LegState,
    Session,
    SessionFlag,
    SessionState,
    network_port,
)
from msocks.datapath.splice.libbpf import RingBuffer
from msocks.datapath.splice.loader import SpliceProgram
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.segments import MAPPED_PREFIX
from msocks.datapath.splice.tables import Tables
from msocks.errors import EndReason
from msocks.values.endpoint import Endpoint

MOBILE = 1


@contextlib.contextmanager
def tables_of(program: SpliceProgram) -> Iterator[Tables]:
    tables = Tables(program, ports=PortRange(20000, 20100), half_closed_s=60)
    try:
        yield tables
    finally:
        tables.close()


def ipv4(text: str) -> bytes:
    return MAPPED_PREFIX + socket.inet_aton(text)


def spliced() -> Session:
    """A session in the middle of its life: 500 bytes up and 7000 down."""
    session = Session()
    session.state, session.active = SessionState.OPEN, MOBILE
    session.flags = SessionFlag.RESUMABLE
    for leg, remote, port, own_port in (
        (session.legs[SERVER], "198.51.100.2", 443, 20001),
        (session.legs[MOBILE], "10.1.0.2", 40000, 1080),
    ):
        leg.remote[:] = ipv4(remote)
        leg.local[:] = ipv4("192.0.2.2")
        leg.remote_port, leg.local_port = network_port(port), network_port(own_port)
        leg.state, leg.family = LegState.LIVE, 4
    session.legs[SERVER].in_base, session.legs[SERVER].out_base = 111, 222
    session.legs[MOBILE].generation, session.legs[MOBILE].flags = 3, LegFlag.REPLY_ACKED
    session.legs[MOBILE].begins_in, session.legs[MOBILE].begins_out = 300, 5000
    session.up.fin = session.down.fin = NO_FIN
    session.up.sent = session.up.acked = 500
    session.down.sent = session.down.acked = 7000
    return session


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


def test_a_session_is_told_from_its_entry():
    survivor = survivor_of(spliced(), 9)
    assert survivor is not None
    assert (survivor.place, survivor.generation, survivor.resumable, survivor.parked) == (9, 3, True, False)
    assert (survivor.up_from, survivor.down_from, survivor.end) == (300, 5000, None)
    assert [survivor.server, survivor.bound, survivor.client] == [
        Endpoint.parse(text) for text in ("198.51.100.2:443", "192.0.2.2:20001", "10.1.0.2:40000")
    ]


def identity(session: Session, slot: int) -> bytes:
    survivor = survivor_of(session, slot)
    assert survivor is not None
    return survivor.identity


def test_its_identity_is_the_same_whatever_leg_carries_it_and_no_other_sessions():
    one, other = spliced(), spliced()
    other.legs[MOBILE].generation, other.up.acked = 4, 10_000
    assert identity(one, 7) == identity(other, 7) != identity(other, 8)
    other.incarnation += 1  # the next session of the slot
    assert identity(other, 7) != identity(one, 7)


@pytest.mark.parametrize("state", [SessionState.FREE, SessionState.OPENING])
def test_what_was_never_spliced_does_not_survive(state: SessionState):
    session = spliced()
    session.state = state
    assert survivor_of(session, 1) is None


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (SessionState.CLOSING, EndReason.CLOSED),
        (SessionState.RESET, EndReason.SERVER_RESET),
        (SessionState.RESETTING, EndReason.PROXY_FAILED),
    ],
)
def test_how_it_has_ended(state: SessionState, end: EndReason):
    session = spliced()
    session.state, session.down.fin = state, 7000
    survivor = survivor_of(session, 1)
    assert survivor is not None
    assert (survivor.end, survivor.down_fin) == (end, 7000)


def test_a_session_whose_leg_is_gone_or_stopped_is_parked():
    gone, stopped = spliced(), spliced()
    gone.legs[MOBILE].state = LegState.STOPPED
    stopped.flags |= SessionFlag.STOPPED
    for session in (gone, stopped):
        survivor = survivor_of(session, 1)
        assert survivor is not None
        assert survivor.parked


def test_bytes_that_this_host_owes_are_missing_until_they_are_acknowledged():
    session = spliced()
    assert what_is_missing(session) == ""
    session.owed_up, session.owed_down = 500, 7000
    assert what_is_missing(session) == ""
    session.owed_up = 501
    assert "the client had sent" in what_is_missing(session)
    session.owed_up, session.owed_down = 0, 7001
    assert "the server had sent" in what_is_missing(session)


def test_a_reply_is_missing_to_those_who_cannot_ask_again():
    session = spliced()
    session.legs[MOBILE].flags = 0
    assert what_is_missing(session) == ""
    session.flags = 0
    assert "the reply" in what_is_missing(session)


def test_a_slot_that_was_freed_while_nobody_listened_is_free_once():
    with own_host() as (_, pins), loaded(pins) as program, tables_of(program) as tables:
        before, after = tables.take_slot(), tables.take_slot()
        assert before is not None
        assert after is not None
        for slot in (before, after):
            tables.session(slot).state = SessionState.RESET
        tables.session(before).last_ns = 1
        eventually(lambda: tables.session(before).state == SessionState.FREE)
        with tables_of(program) as successor:
            assert before in successor.unused_slots()
            assert after not in successor.unused_slots()
            tables.session(after).last_ns = 1  # and now, before the events are read
            eventually(lambda: tables.session(after).state == SessionState.FREE)
            events = RingBuffer(program.map("events"))
            assert freed_just_now(events, successor) == [after]
            events.close()


def test_handshakes_that_were_under_way_leave_nothing():
    with own_host() as (_, pins), loaded(pins) as program, tables_of(program) as tables:
        slot = tables.take_slot()
        assert slot is not None
        leg = tables.session(slot).legs[MOBILE]
        leg.remote[:], leg.local[:] = ipv4("10.1.0.2"), ipv4("192.0.2.2")
        leg.state = LegState.HANDSHAKE
        tables.put_flows([(key_of(leg), MOBILE)], slot)
        remote = ipv4("198.51.100.2"), 443
        with socket.socket(socket.AF_INET) as server:
            tables.prepare(slot, server.fileno(), remote, 20001, mobile=None, smallest_mtu=0)
        with tables_of(program) as successor:
            free = successor.free_slots
            clear_handshakes(successor)
            assert (successor.free_slots, successor.flow_count()) == (free + 1, 0)
            assert not list(program.map("opening").keys())
