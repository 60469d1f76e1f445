"""A spliced session goes back to this host's kernel, for a relay to carry it on.

The server's leg becomes a socket again, in the middle of its connection, from the numbers of the splice. It is done
where a mobile leg comes whose ACKs the server must not hear: a middlebox's.
"""

from __future__ import annotations

import contextlib
import socket

from msocks.datapath.splice import flows
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import NO_FIN, Session, SessionState
from msocks.datapath.splice.leg_socket import server_socket
from msocks.datapath.splice.owed import OwedBytes
from msocks.datapath.splice.rebuild import provoke
from msocks.datapath.splice.server_legs import Preparation


def is_possible(session: Session, owed: OwedBytes | None) -> bool:
    """Whether a socket could go on where the splice is: no direction has ended, and this host owes nobody a byte."""
    ended = session.up.fin != NO_FIN or session.down.fin != NO_FIN
    return session.state == SessionState.OPEN and not ended and (owed is None or not owed.rest())


def to_kernel(host: SpliceHost, preparation: Preparation, up_taken: int, down_from: int) -> socket.socket:
    """The server's leg as a socket; the splice knows the session no more. The mobile's leg is stopped, and settled.

    Args:
        host: The datapath.
        preparation: Of the session; its port stays its own.
        up_taken: U: what is sent on the socket begins there.
        down_from: D: what comes on it begins there. What is before, the mobile has.

    Raises:
        OSError: There is no such socket to be had; the session is as it was.
    """
    session = host.tables.session(preparation.slot)
    sock = server_socket(session, up_taken, down_from)
    flows.leave(host.tables, session)
    host.leave(preparation.slot)
    host.tables.free_slot(preparation.slot)
    with contextlib.suppress(OSError):  # it is lost, and the relay finds out how
        provoke(sock)  # the server hears what the mobile has, and that there is room
    return sock
