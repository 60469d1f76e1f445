"""Does a middlebox on this path end TCP and ACK for the proxy? Decided from two round-trip times; sans-IO.

A performance-enhancing proxy (RFC 3135), as on satellite and some LTE links, answers a TCP connection's segments
itself, long before they could have been to the proxy and back. What it has ACKed may die with it. A probe has to go the
whole way: where the shortest round trip that TCP has seen is far below the shortest one of any probe, TCP ends on the
way.

The least of each is compared, as queues, radios that sleep and busy programs only ever add. What a full queue adds to
the probes of its time it adds to TCP's round trips as well, beyond their least; that is taken off. A path may be called
split for a moment because all probes so far were slow; the first quick one takes that back. A middlebox beside the
proxy, whose ACKs take as long as the proxy's, is not recognised.

Times are seconds.
"""

from __future__ import annotations

import math

FACTOR = 2.0
MARGIN_S = 0.025
"""Programs may be so much slower than the kernels, which send the ACKs, and say nothing of it."""
NEEDED = 10
"""Enough for a busy machine to answer one of them at once."""


class SplitPath:
    """See the module. Where the last network on the same link was split, this one is `assumed` to be until it shows."""

    __slots__ = ("_assumed", "_samples", "_tcp_s", "_whole_s")

    def __init__(self, *, assumed: bool = False) -> None:
        self._assumed = assumed
        self._tcp_s = math.inf
        self._whole_s = math.inf
        self._samples = 0

    def on_tcp(self, rtt_s: float) -> None:
        """The least round-trip time that the kernel has measured on a connection over this path; 0 where none."""
        if rtt_s > 0:
            self._tcp_s = min(self._tcp_s, rtt_s)

    def is_slow(self, rtt_s: float) -> bool:
        """Whether an answer that took so long would speak for a split path."""
        return FACTOR * self._tcp_s + MARGIN_S < rtt_s

    def on_whole(self, rtt_s: float, busy_s: float = 0.0) -> None:
        """The proxy's program has answered a probe; a busy connection has measured `busy_s` meanwhile, or 0."""
        queued_s = max(0.0, busy_s - self._tcp_s)
        self._samples += 1
        self._whole_s = min(self._whole_s, max(0.0, rtt_s - queued_s))

    @property
    def is_split(self) -> bool:
        """Whether ACKs on this path say nothing of the proxy."""
        return self._may_be_split and (self._assumed or self._samples >= NEEDED)

    @property
    def is_doubtful(self) -> bool:
        """Whether it may be split, and a few more probes would tell."""
        return self._may_be_split and self._samples < NEEDED

    @property
    def _may_be_split(self) -> bool:
        if math.isinf(self._tcp_s) or math.isinf(self._whole_s):
            return self._samples < NEEDED
        return self.is_slow(self._whole_s)
