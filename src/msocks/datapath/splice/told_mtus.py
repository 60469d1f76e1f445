"""What path MTUs this host has told to servers, for as long as they may believe them.

A server that was told that its segments are too large announces less to this host from then on as well (Linux derives
the MSS that it announces from the path MTU), although it can take what it could before. Sessions toward it need not be
relayed for that. The server remembers it for longer than this process may live, and so it is kept with the pinned
tables.
"""

from __future__ import annotations

import contextlib
import time

from msocks.datapath.splice.layout import ToldMtu
from msocks.datapath.splice.libbpf import BpfError, BpfMap

_BELIEVED_NS = 900 * 1_000_000_000  # Linux forgets after 10 minutes, as RFC 1191 section 6.3 suggests
_HEADERS = {4: 40, 6: 60}  # IP and TCP, without options


class ToldMtus:
    """See the module. `table` is one of a limited size, which lets go of what was not used for long."""

    def __init__(self, table: BpfMap) -> None:
        self._table = table

    def note(self, address: bytes, mtu: int) -> None:
        """The host with this address (16 bytes) was told of a path MTU, in bytes."""
        known = self._known(address)
        made = ToldMtu(until_ns=time.monotonic_ns() + _BELIEVED_NS, mtu=mtu if known is None else min(mtu, known))
        with contextlib.suppress(BpfError):  # no memory: then the sessions toward it are relayed
            self._table.update(address, bytes(made))

    def segment(self, address: bytes, family: int) -> int | None:
        """The largest segment that such a host may believe in; `family` is 4 or 6. None where it was told nothing."""
        known = self._known(address)
        return None if known is None else known - _HEADERS[family]

    def _known(self, address: bytes) -> int | None:
        found = self._table.lookup(address)
        if found is None:
            return None
        told = ToldMtu.from_buffer_copy(found)
        return told.mtu if told.until_ns > time.monotonic_ns() else None
