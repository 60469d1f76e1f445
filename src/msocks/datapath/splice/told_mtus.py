"""What path MTUs this host has told to servers, for as long as they may believe them.

A server that was told that its segments are too large announces less to this host from then on as well (Linux derives
the MSS that it announces from the path MTU), although it can take what it could before. Sessions toward it need not be
relayed for that.
"""

from __future__ import annotations

import time
from collections import OrderedDict

_MOST = 4096
_BELIEVED_S = 900.0  # Linux forgets after 10 minutes, as RFC 1191 section 6.3 suggests
_HEADERS = {4: 40, 6: 60}  # IP and TCP, without options


class ToldMtus:
    """See the module. Of so many servers that memory is no matter; the one told first is forgotten first."""

    def __init__(self) -> None:
        self._told: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def note(self, address: bytes, mtu: int) -> None:
        """The host with this address (16 bytes) was told of a path MTU, in bytes."""
        now = time.monotonic()
        known = self._told.pop(address, None)
        if known is not None and known[1] > now:
            mtu = min(mtu, known[0])
        self._told[address] = mtu, now + _BELIEVED_S
        while len(self._told) > _MOST:
            self._told.popitem(last=False)

    def segment(self, address: bytes, family: int) -> int | None:
        """The largest segment that such a host may believe in; `family` is 4 or 6. None where it was told nothing."""
        known = self._told.get(address)
        if known is None or known[1] < time.monotonic():
            return None
        return known[0] - _HEADERS[family]
