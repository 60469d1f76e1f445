"""The proxy's clock as the client knows it.

Times on the wire are milliseconds of the proxy's association clock, so that the client's clock may be wrong by any
amount. Only differences of the client's monotonic clock are added to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from msocks.protocol.fields import MAX_U64, check_range

LEG_LIFETIME_MS = 30_000
"""A leg's request is refused when it reaches the proxy later than this after it was written."""


@dataclass(frozen=True, slots=True)
class ProxyClock:
    """A reading of the proxy's clock and the local time at which it came.

    The reading is late by the time it took to travel, so `now_ms` never runs ahead of the proxy: a request expires
    early, by the length of that way at most.

    Attributes:
        proxy_ms: The proxy's clock in milliseconds, from a WELCOME or from a leg's verified reply.
        local_s: The local monotonic clock in seconds at the moment of arrival. It must count the time in which the
            machine sleeps (CLOCK_BOOTTIME), or requests after a sleep expire at once and cost a second round trip.
    """

    proxy_ms: int
    local_s: float

    def __post_init__(self) -> None:
        check_range(self.proxy_ms, MAX_U64, "the proxy's clock")

    def now_ms(self, local_s: float) -> int:
        """The proxy's clock at the local time `local_s` (seconds)."""
        return self.proxy_ms + max(0, int((local_s - self.local_s) * 1000))

    def expiry_ms(self, local_s: float, lifetime_ms: int = LEG_LIFETIME_MS) -> int:
        """The expiry to write into a request that leaves at the local time `local_s` (seconds)."""
        return self.now_ms(local_s) + lifetime_ms
