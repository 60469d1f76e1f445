"""Legs that come to nothing in the splice: their sockets are the kernel's, and stay that."""

from __future__ import annotations

import contextlib
import socket

from msocks.datapath.splice import flows
from msocks.datapath.splice.entries import Side, fill_leg
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import SERVER, LegFlag
from msocks.datapath.splice.server_legs import Preparation
from msocks.datapath.splice.speech import say
from msocks.transport.kernel import reset_on_close


def refuse(host: SpliceHost, leg: socket.socket) -> None:
    """A mobile leg; the mobile node, which has its reply or not, opens another."""
    host.reactor.unwatch(leg.fileno())
    with contextlib.suppress(OSError):
        reset_on_close(leg)
    leg.close()


def let_speak(host: SpliceHost, preparation: Preparation, side: Side | None) -> None:
    """A server leg that is to be relayed; the slot can be used again, the port is its own until it is closed."""
    session = host.tables.session(preparation.slot)
    entry = session.legs[SERVER]
    flows.leave(host.tables, session)
    host.tables.delete_opening(preparation.key)
    if entry.flags & LegFlag.NOTED and side is not None:
        # Its kernel's ACK of the handshake was kept back; the server waits for one.
        fill_leg(entry, side)
        host.output.send(say(session, SERVER, 0, window=side.options.receive_window))
    host.tables.free_slot(preparation.slot)


def close_server(host: SpliceHost, preparation: Preparation | None, server: socket.socket, reset: bool) -> None:
    """A server leg for which no mobile leg has ever carried: an ordinary socket, to be closed."""
    if preparation is not None:
        flows.leave(host.tables, host.tables.session(preparation.slot))
        host.leave(preparation.slot)
    host.reactor.unwatch(server.fileno())
    reset_on_close(server, reset)
    server.close()
    if preparation is not None:
        host.server_legs.release(preparation)
