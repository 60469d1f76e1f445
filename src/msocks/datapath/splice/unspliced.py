"""A server leg that was prepared for the splice and is not spliced: it is the kernel's socket, and stays that."""

from __future__ import annotations

import socket

from msocks.datapath.splice import flows
from msocks.datapath.splice.entries import Side, fill_leg
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import SERVER, LegFlag
from msocks.datapath.splice.server_legs import Preparation
from msocks.datapath.splice.speech import say
from msocks.transport.kernel import reset_on_close


def let_speak(host: SpliceHost, preparation: Preparation, side: Side | None) -> None:
    """The socket is to be relayed; the slot can be used again, the port is its own until it is closed."""
    session = host.tables.session(preparation.slot)
    entry = session.legs[SERVER]
    flows.leave(host.tables, session)
    host.tables.delete_opening(preparation.key)
    if entry.flags & LegFlag.NOTED and side is not None:
        # Its window was shown as zero; nobody has said otherwise yet.
        fill_leg(entry, side)
        host.output.send(say(session, SERVER, 0, window=side.options.receive_window))
    host.tables.free_slot(preparation.slot)


def close_server(host: SpliceHost, preparation: Preparation | None, server: socket.socket, reset: bool) -> None:
    """No leg has ever carried: it is an ordinary socket, to be closed."""
    if preparation is not None:
        flows.leave(host.tables, host.tables.session(preparation.slot))
        host.leave(preparation.slot)
    host.reactor.unwatch(server.fileno())
    reset_on_close(server, reset)
    server.close()
    if preparation is not None:
        host.server_legs.release(preparation)
