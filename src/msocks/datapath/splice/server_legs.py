"""Server legs from before their SYN until a conduit takes them: port, mark, and a slot that the kernel's half fills."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from msocks.datapath.splice.layout import Session, SessionState
from msocks.datapath.splice.libbpf import BpfError
from msocks.datapath.splice.ports import PortAllocator
from msocks.datapath.splice.rate_limited_log import RateLimitedLog
from msocks.datapath.splice.segments import MAPPED_PREFIX, End
from msocks.datapath.splice.tables import Tables, opening_key
from msocks.values.endpoint import Address

_BIND_ATTEMPTS = 16
_LEAST_LINGER_NS = 1_000_000_000
_MANY_WAITING = 16  # then is looked which of them nobody waits for any more
_OVER = (SessionState.CLOSING, SessionState.RESET, SessionState.RESETTING)
_MORE_SESSIONS = "raise limits.sessions; sessions that have ended keep theirs for a minute"


@dataclass(slots=True, eq=False)
class Preparation:
    """What a server leg has been given.

    Attributes:
        slot: In the table of sessions.
        session: The entry there.
        incarnation: Of the slot: an entry that has expired meanwhile may be another's.
        remote: The server.
        port: The local port.
    """

    slot: int
    session: Session
    incarnation: int
    remote: End
    port: int
    _sock: Callable[[], socket.socket | None]
    taken: bool = False

    @property
    def key(self) -> bytes:
        """In the table of server legs in their handshake."""
        return opening_key(self.remote, self.port)

    @property
    def abandoned(self) -> bool:
        """Whether its socket was closed before a conduit took it."""
        sock = self._sock()
        return sock is None or sock.fileno() < 0


class ServerLegs:
    """See the module."""

    def __init__(
        self, tables: Tables, ports: PortAllocator, shortage: RateLimitedLog, sweep: Callable[[], None]
    ) -> None:
        """`sweep` looks for slots that were freed without a word."""
        self._sweep = sweep
        self._tables = tables
        self._ports = ports
        self._shortage = shortage
        self._by_descriptor: dict[int, Preparation] = {}
        self._waiting: deque[Preparation] = deque()
        self._ended: OrderedDict[int, int] = OrderedDict()  # slots that linger, and their incarnations

    def prepare(
        self,
        sock: socket.socket,
        destination: tuple[Address, int],
        mobile: socket.socket | None,
        smallest_mtu: int | None,
    ) -> None:
        """Give `sock`, which is about to connect, what a server leg needs; without room it stays an ordinary socket."""
        if len(self._waiting) > _MANY_WAITING:
            self._reclaim()
        descriptor = sock.fileno()
        self._by_descriptor.pop(descriptor, None)
        tables = self._tables
        slot = tables.take_slot()
        if slot is None:
            slot = self._make_room()
        if slot is None:
            taken = f"all {tables.slots} places for sessions are taken"
            self._shortage.warn("slots", reason=taken, remedy=_MORE_SESSIONS)
            return
        address, remote_port = destination
        remote = MAPPED_PREFIX + address.packed if isinstance(address, IPv4Address) else address.packed, remote_port
        client = mobile.fileno() if mobile is not None else None
        try:
            port = self._bind(descriptor, slot, remote, client, smallest_mtu or 0)
        except BpfError as error:
            tables.free_slot(slot)
            full = "no more entries fit into the table of openings"
            self._shortage.warn("opening", reason=full, remedy=error.remedy)
            return
        except OSError as error:
            tables.free_slot(slot)
            self._shortage.warn("ports", reason=error.strerror or str(error), remedy="widen proxy.splice_ports")
            return
        session = tables.session(slot)
        preparation = Preparation(slot, session, session.incarnation, remote, port, weakref.ref(sock))
        self._by_descriptor[descriptor] = preparation
        self._waiting.append(preparation)

    def claim(self, sock: socket.socket) -> Preparation | None:
        """The preparation of a socket that has connected; None where there was no room for it."""
        preparation = self._by_descriptor.pop(sock.fileno(), None)
        if preparation is None or preparation.abandoned:
            return None
        preparation.taken = True
        return preparation

    def release(self, preparation: Preparation) -> None:
        """Its socket is the kernel's alone from now on, or gone; the slot can be used again."""
        self._tables.delete_opening(preparation.key)
        session = preparation.session
        # The kernel's half lets go of what waits too long for a connection, and that has been told already.
        if session.incarnation == preparation.incarnation and session.state != SessionState.FREE:
            self._tables.free_slot(preparation.slot)
        self.release_port(preparation)

    def release_port(self, preparation: Preparation) -> None:
        """Nobody uses the port toward this server any more."""
        self._ports.release(*preparation.remote, preparation.port)

    def ended(self, slot: int, incarnation: int) -> None:
        """The session is over; its entry lingers for what comes late, and can be reused when room is scarce."""
        if self._tables.session(slot).incarnation == incarnation:
            self._ended[slot] = incarnation
            self._ended.move_to_end(slot)

    def freed(self, slot: int) -> None:
        """The kernel's half has let go of an entry: it lingers no more."""
        self._ended.pop(slot, None)

    def _make_room(self) -> int | None:
        """A slot, where there is none that nobody has."""
        self._reclaim()
        self._sweep()
        slot = self._tables.take_slot()
        return self._reuse() if slot is None else slot

    def _reuse(self) -> int | None:
        """The slot of the session that has ended first, if it has lingered for a moment; as TIME-WAIT is cut short."""
        tables, ended = self._tables, self._ended
        while ended:
            slot, incarnation = next(iter(ended.items()))
            session = tables.session(slot)
            if session.incarnation != incarnation or session.state not in _OVER:
                del ended[slot]  # it has expired, or will: its end is told
                continue
            if time.monotonic_ns() - session.last_ns < _LEAST_LINGER_NS:
                return None
            del ended[slot]
            tables.forget_flows(slot)
            remote, remote_port, local_port = tables.server_end(slot)
            with contextlib.suppress(KeyError):
                self._ports.release(remote, remote_port, local_port)
            tables.free_slot(slot)
            return tables.take_slot()
        return None

    def _reclaim(self) -> None:
        """What was prepared for sockets that never came to a conduit, oldest first; what came to one is let go."""
        waiting = self._waiting
        while waiting:
            oldest = waiting[0]
            if not oldest.taken:
                if not oldest.abandoned:
                    return
                self.release(oldest)
            waiting.popleft()

    def _bind(self, descriptor: int, slot: int, remote: End, mobile: int | None, smallest_mtu: int) -> int:
        """Prepare it with a port that connections to other servers may share.

        Raises OSError; BpfError where the table of openings is full, and the port is free again.
        """
        for _ in range(_BIND_ATTEMPTS):
            port = self._ports.take(*remote)
            try:
                self._tables.prepare(slot, descriptor, remote, port, mobile=mobile, smallest_mtu=smallest_mtu)
            except OSError as error:
                self._ports.release(*remote, port)
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
        raise OSError(errno.EADDRINUSE, "ports of the splice's range are used by other programs")
