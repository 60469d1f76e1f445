"""Puts legs into the table of flows, and takes them out: what arrives with their addresses is the session's."""

from __future__ import annotations

import contextlib
import socket

from msocks.datapath.splice.entries import Side, fill_leg, key_of, leg_key
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import SERVER, Leg, LegState, Session
from msocks.datapath.splice.libbpf import BpfError
from msocks.datapath.splice.tables import Tables

_FIRST = 1


def enter(host: SpliceHost, slot: int, mobile: Side, server: Side) -> bool:
    """The server leg and the first mobile leg; False where there is no room.

    Before the reply is written, which tells what carries the session; until it leaves the kernel's sockets answer.
    """
    session = host.tables.session(slot)
    leave(host.tables, session)  # a leg that was asked about, and not attached
    found = []
    for number, side in ((SERVER, server), (_FIRST, mobile)):
        leg = session.legs[number]
        fill_leg(leg, side)
        leg.state = LegState.HANDSHAKE
        found.append((key_of(leg), number))
    return put(host, slot, found)


def put(host: SpliceHost, slot: int, flows: list[tuple[bytes, int]]) -> bool:
    """Keys and numbers of legs; all of them or none. False where there is no room, which the log tells."""
    tables = host.tables
    try:
        tables.put_flows(flows, slot)
    except BpfError as error:
        for key, number in flows:
            tables.delete_flow_of(key, slot)
            tables.session(slot).legs[number].state = LegState.NONE
        full = "no more entries fit into the table of flows"
        host.shortage.warn("flows", reason=full, remedy=error.remedy)
        return False
    return True


def replace(tables: Tables, session: Session, old_number: int, number: int) -> None:
    """What still comes on an old mobile leg is nobody's. The new one may have the same addresses."""
    old, new = session.legs[old_number], session.legs[number]
    if old.state != LegState.NONE and key_of(old) != key_of(new):
        tables.delete_flow(key_of(old))
    old.state = LegState.NONE


def take_out(tables: Tables, leg: Leg) -> None:
    """A leg that came to nothing."""
    tables.delete_flow(key_of(leg))
    leg.state = LegState.NONE


def leave(tables: Tables, session: Session) -> None:
    """No packet finds the session any more."""
    for leg in session.legs:
        if leg.state != LegState.NONE:
            take_out(tables, leg)


def uncap(tables: Tables, leg: socket.socket) -> None:
    """What follows a RECONNECT that is relayed is this kernel's to acknowledge."""
    with contextlib.suppress(OSError):  # it is lost, and the relay finds out how
        tables.delete_cap(leg_key(leg))
