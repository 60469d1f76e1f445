"""What the server's kernel says of itself while a transfer moves: time-outs, what it sends again, what it measures."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.world import PATTERN_PORT
from msocks_lab import Lab

_COUNTED = {
    "TcpExt": ("TCPTimeouts", "TCPLossProbes", "TCPFastRetrans", "TCPSlowStartRetrans", "TCPSpuriousRTOs"),
    "Tcp": ("RetransSegs", "OutSegs"),
}
_MEASURED = {
    "srtt_ms": r" rtt:([\d.]+)",
    "rto_ms": r" rto:([\d.]+)",
    "min_rtt_ms": r" minrtt:([\d.]+)",
    "window_segments": r" cwnd:(\d+)",
}
_LOOK = f"cat /proc/net/netstat /proc/net/snmp; ss -tinH state established sport = :{PATTERN_PORT}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: counters of the server's network namespace, and what its connection measures ("srtt_ms" and so on).

    `measured` is empty where there is no such connection. `at` is in seconds of CLOCK_MONOTONIC.
    """

    at: float
    counters: dict[str, int]
    measured: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """What the raw result keeps."""
        return {"at": self.at, **self.counters, **self.measured}


def look(lab: Lab) -> Sample:
    """Look at the server's side now."""
    at = time.monotonic()
    return parse(lab.server.run(["sh", "-c", _LOOK]).stdout, at)


def parse(text: str, at: float) -> Sample:
    """What /proc/net/netstat, /proc/net/snmp and `ss -ti` say, one after the other."""
    counters: dict[str, int] = {}
    lines = text.splitlines()
    for names, values in itertools.pairwise(lines):
        group = names.partition(":")[0]
        if group in _COUNTED and values.startswith(f"{group}:") and names.split()[1].isalpha():
            found = dict(zip(names.split()[1:], values.split()[1:], strict=True))
            counters |= {name: int(found[name]) for name in _COUNTED[group] if name in found}
    measured = {}
    for name, pattern in _MEASURED.items():
        match = re.search(pattern, text)
        if match:
            measured[name] = float(match[1])
    return Sample(at, counters, measured)


def between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """By how much the counters grew from one sample (as JSON) to the next."""
    names = [name for group in _COUNTED.values() for name in group]
    return {name: after[name] - before[name] for name in names if name in before and name in after}
