"""The kernel half's tables, as this half reads and writes them.

Sessions, settings and counters lie in memory that both halves have mapped: no system call. The tables that are searched
by key (flows, server legs in their handshake) cost one for each change.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections import deque
from collections.abc import Iterator
from itertools import compress

from msocks.datapath.splice import libbpf
from msocks.datapath.splice.layout import (
    Busy,
    Config,
    DropReason,
    Session,
    SessionState,
    network_port,
)
from msocks.datapath.splice.libbpf import BpfError, lib
from msocks.datapath.splice.loader import SpliceProgram
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.segments import End
from msocks.datapath.splice.told_mtus import ToldMtus

_FLOW = struct.Struct("=III")  # struct flow
_SERVER_END = struct.Struct("!16s16xHH")  # the struct flow_key that the first leg, and so the entry, begins with
_SESSION_BYTES = ctypes.sizeof(Session)
_STATE_AT: int = vars(Session)["state"].offset
_WHICH = struct.Struct("=II")  # struct which
_NANOSECONDS = 1_000_000_000
_LONGEST_SETTLING_S = 0.1
# So long an entry stays after the last packet that it let through, by the state of its session.
_OPENING_S = 120
_OPEN_S = 5 * 86400  # vanished peers
_CLOSING_S = 60  # TIME-WAIT of either end, and FINs that come again
_RESET_S = 20
MISSES_TELL = 2  # of bpf/path.h


def flow_key(remote: End, local: End) -> bytes:
    """The struct flow_key of what arrives on a leg."""
    return remote[0] + local[0] + remote[1].to_bytes(2, "big") + local[1].to_bytes(2, "big")


def opening_key(remote: End, local_port: int) -> bytes:
    """The struct opening_key of a server leg."""
    return remote[0] + remote[1].to_bytes(2, "big") + local_port.to_bytes(2, "big")


def carries_nothing(program: SpliceProgram) -> bool:
    """Whether the kernel has no session that these programs would be missed by."""
    table = program.map("sessions")
    return SessionState.OPEN not in _states((Session * table.max_entries).from_buffer(table.mmap()))


def _states(sessions: ctypes.Array[Session]) -> bytes:
    """The state of each. A proxy starts with it: to look at the entries one by one would take longer."""
    return memoryview(sessions).cast("B")[_STATE_AT::_SESSION_BYTES].tobytes()


class Tables:
    """See the module. One for each loaded program; `close` lets go of the memory, the tables stay."""

    def __init__(self, program: SpliceProgram, *, ports: PortRange, half_closed_s: float) -> None:
        self._flows = program.map("flows")
        self._opening = program.map("opening")
        self._listeners = program.map("listeners")
        self._caps = program.map("caps")
        self._drops = program.map("drops")
        self.told_mtus = ToldMtus(program.map("told_mtus"))
        self._fix_split = program.program("fix_split")
        sessions, config, busy, lost = (program.map(name) for name in ("sessions", "config", "busy", "lost"))
        self.slots = sessions.max_entries
        self._sessions = (Session * self.slots).from_buffer(sessions.mmap())
        self._begin = ctypes.addressof(self._sessions)
        self._busy = (Busy * busy.max_entries).from_buffer(busy.mmap())
        self._lost = ctypes.c_uint64.from_buffer(lost.mmap())
        settings = Config.from_buffer(config.mmap())
        settings.opening_ns = _OPENING_S * _NANOSECONDS
        settings.open_ns = _OPEN_S * _NANOSECONDS
        settings.half_closed_ns = int(half_closed_s * _NANOSECONDS)
        settings.closing_ns = _CLOSING_S * _NANOSECONDS
        settings.reset_ns = _RESET_S * _NANOSECONDS
        settings.slots = self.slots
        settings.first_port, settings.last_port = ports.first, ports.last
        # An entry of an earlier process keeps its slot until it expires.
        self._taken = bytearray(state != SessionState.FREE for state in _states(self._sessions))
        self._free = deque(slot for slot, taken in enumerate(self._taken) if not taken)

    # -- sessions ---------------------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        """How many more sessions fit."""
        return len(self._free)

    def unused_slots(self) -> frozenset[int]:
        """Those that can be taken."""
        return frozenset(self._free)

    def session(self, slot: int) -> Session:
        """The entry itself."""
        found: Session = self._sessions[slot]
        return found

    def address(self, slot: int) -> int:
        """Where the entry lies in this process's memory."""
        return self._begin + slot * _SESSION_BYTES

    def server_end(self, slot: int) -> tuple[bytes, int, int]:
        """The server's address (16 bytes) and port, and the local port toward it."""
        found: tuple[bytes, int, int] = _SERVER_END.unpack(ctypes.string_at(self.address(slot), _SERVER_END.size))
        return found

    def take_slot(self) -> int | None:
        """An unused slot, in state OPENING with a new incarnation; None where there is none."""
        if not self._free:
            return None
        slot = self._free.popleft()
        self._taken[slot] = 1
        lib.msocks_open_entry(self.address(slot))
        return slot

    def free_slot(self, slot: int) -> None:
        """A slot whose entry nobody can find any more."""
        self._sessions[slot].state = SessionState.FREE
        self.freed(slot)

    def freed(self, slot: int) -> bool:
        """The kernel's half has freed the slot; whether that is news."""
        if not self._taken[slot]:
            return False
        self._taken[slot] = 0
        self._free.append(slot)
        return True

    def taken_slots(self) -> Iterator[int]:
        """Those that have been taken, and not been freed as far as is known here."""
        return compress(range(self.slots), self._taken)

    def forget_interface(self, index: int) -> int:
        """It is gone: the next packet that would leave there makes the programs ask for another way (EVENT_NO_PATH).

        Returns how many legs were on their way over it.
        """
        found = 0
        for slot in self.taken_slots():
            for leg in self._sessions[slot].legs:
                path = leg.path
                if path.known and path.ifindex == index:
                    path.ethernet, path.misses, path.fresh_until = 1, MISSES_TELL, 0
                    found += 1
        return found

    # -- found by key -----------------------------------------------------------------------------------------------

    def put_flows(self, flows: list[tuple[bytes, int]], slot: int) -> None:
        """What arrives with these addresses (`flow_key`) belongs to a leg of that slot (its number), all at once.

        Raises BpfError where the table is full.
        """
        incarnation = self._sessions[slot].incarnation
        keys = values = b""
        for key, leg in flows:
            keys += key
            values += _FLOW.pack(slot, incarnation, leg)
        self._flows.update_all(keys, values, len(flows))

    def pair(self, slot: int, mobile: int, server: int, *, resumable: bool) -> bool:
        """The first mobile leg and the server leg (descriptors) are found to fit, and entered; False where it takes a
        closer look.
        """
        found = lib.msocks_pair(mobile, server, self._flows.fd, slot, resumable, self.address(slot))
        return bool(found)

    def delete_flow(self, key: bytes) -> None:
        """The opposite; no-op where there is none."""
        self._flows.delete(key)

    def delete_flow_of(self, key: bytes, slot: int) -> None:
        """The same, unless another session's leg has these addresses by now."""
        found = self._flows.lookup(key)
        if found is not None and _FLOW.unpack(found)[:2] == (slot, self._sessions[slot].incarnation):
            self._flows.delete(key)

    def forget_flows(self, slot: int) -> None:
        """Delete those of all legs of a session, where their addresses are not another session's leg's by now."""
        lib.msocks_forget_flows(self._flows.fd, slot, self.address(slot))

    def prepare(
        self, slot: int, server: int, remote: End, local_port: int, *, mobile: int | None, smallest_mtu: int
    ) -> None:
        """A server leg (a descriptor, as `mobile`'s) gets its local port, and begins its handshake.

        `smallest_mtu` is that of the mobile node's links, 0 where it is not known.

        Raises BpfError where the table is full, another OSError where the port cannot be had.
        """
        address, port = remote
        result = lib.msocks_prepare(
            server,
            -1 if mobile is None else mobile,
            smallest_mtu,
            address,
            port,
            local_port,
            self._opening.fd,
            slot,
            self.address(slot),
        )
        if result > 0:
            raise BpfError(result, "cannot write to the table opening")
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def delete_opening(self, key: bytes) -> None:
        """It is over, or somebody else's affair; no-op where there is none."""
        self._opening.delete(key)

    def delete_openings(self) -> None:
        """Nobody's handshake with a server is under way."""
        for key in list(self._opening.keys()):
            self._opening.delete(key)

    def delete_cap(self, key: bytes) -> None:
        """The kernel may acknowledge all that arrives with these addresses; no-op where it may already."""
        self._caps.delete(key)

    def flow_count(self) -> int:
        """Entries in the table of flows. Walks through it."""
        return sum(1 for _ in self._flows.keys())  # noqa: SIM118

    def add_listener(self, port: int) -> None:
        """Connections to a local port may become mobile legs."""
        self._listeners.update(network_port(port).to_bytes(2, "little"), b"\1")

    def remove_listener(self, port: int) -> None:
        """The opposite."""
        self._listeners.delete(network_port(port).to_bytes(2, "little"))

    # -- counters ---------------------------------------------------------------------------------------------------

    def drops(self) -> dict[str, int]:
        """Packets that were dropped since the tables were made, by reason."""
        found = {}
        for reason in DropReason:
            value = self._drops.lookup(int(reason).to_bytes(4, "little"))
            words = memoryview(value or b"").cast("Q")
            found[reason.name.lower()] = sum(words)
        return found

    def lost_events(self) -> int:
        """Events for which the ring buffer had no room, since the tables were made. No system call."""
        return int(self._lost.value)

    def is_empty(self) -> bool:
        """Whether the kernel carries nothing that this host's programs would miss."""
        return SessionState.OPEN not in _states(self._sessions)

    def close(self) -> None:
        """Let go of the mapped memory."""
        del self._sessions, self._busy, self._lost

    def fix_split(self, slot: int) -> None:
        """The handover under way in that slot has its split from now on, if no segment has taken it."""
        libbpf.call(self._fix_split, _WHICH.pack(slot, self._sessions[slot].incarnation))

    async def settle(self) -> None:
        """Wait until every packet that is inside the programs now has left them: tens of microseconds at most."""
        inside = [(busy, busy.count) for busy in self._busy if busy.count & 1]
        give_up = time.monotonic() + _LONGEST_SETTLING_S
        while inside and time.monotonic() < give_up:
            await asyncio.sleep(0)
            inside = [(busy, count) for busy, count in inside if busy.count == count]
