"""What the agent does with its time while it carries bulk data: where perf(1) finds it, and its system calls.

perf samples by a timer (`cpu-clock`), since a virtual machine often has no counters of the processor.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import world
from benchmarks.agent_field import Field
from benchmarks.agent_measurements import DIRECTIONS, start_transfer, wait_until_spliced
from benchmarks.agent_ways import AGENT
from benchmarks.world import BenchmarkError
from msocks_lab import ArrivalMeter, LabProcess

SAMPLED_S = 1.5
COUNTED_S = 1.0
_SAMPLES_PER_S = 1999
_LONGEST_S = 120.0
_LEAST_SHARE = 0.002  # of all samples; rarer symbols are put together
_CLOCK = "date +%s%N; sleep {seconds}; date +%s%N"
_COPYING = re.compile(r"copy|memcpy|rep_movs|__check_object_size")
# In a mount namespace of its own: nothing is mounted any more when perf has ended.
_WITH_TRACEFS = ["unshare", "--mount", "sh", "-c", 'mount -t tracefs tracefs /sys/kernel/tracing && exec "$@"', "sh"]


def profile(field: Field, amount: int, share: float = 1.0) -> dict[str, Any]:
    """For "down" and "up": `symbols` (share of the samples, 0 to 1, by where it is) and `calls` for each GB.

    `amount` bytes have to last for the samples, which are taken for `share` of the usual time. Raises BenchmarkError.
    """
    perf = shutil.which("perf")
    if perf is None:
        raise BenchmarkError("No perf was found; on Debian: apt-get install linux-perf")
    return {direction: _direction(field, perf, direction, amount, share) for direction in DIRECTIONS}


def _direction(field: Field, perf: str, direction: str, amount: int, share: float) -> dict[str, Any]:
    record = field.lab.directory / f"profile-{direction}.json"
    client = start_transfer(field, AGENT, direction, amount, record.stem)
    wait_until_spliced(field, client)
    pid = str(field.product.agent.pid)
    data = field.lab.directory / "perf.data"
    options = ["-q", "-N", "-B", "-e", "cpu-clock", "-F", str(_SAMPLES_PER_S), "-p", pid, "-o", str(data)]
    _run([perf, "record", *options, "--", "sleep", str(SAMPLED_S * share)])
    counting = [perf, "stat", "-x", ";", "-e", "syscalls:sys_enter_*", "-p", pid, "--"]
    counted = _run([*_WITH_TRACEFS, *counting, "sh", "-c", _CLOCK.format(seconds=COUNTED_S * share)])
    since, until = (_monotonic(int(line)) for line in counted.stdout.split())
    _finish(client, record)
    meter = ArrivalMeter.load(record)
    if meter.times[-1] < until:
        raise BenchmarkError(f"{amount} bytes {direction} were through before the profile was made")
    gigabytes = (meter.total_at(until) - meter.total_at(since)) * 1e-9
    report = _run([perf, "report", "-i", str(data), "--stdio", "-q", "--sort", "dso,sym", "-t", ";"])
    return {
        "symbols": grouped(parse_report(report.stdout)),
        "calls": {name: count / gigabytes for name, count in parse_counts(counted.stderr).items()},
    }


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_LONGEST_S)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
    return done


def _monotonic(nanoseconds: int) -> float:
    """An instant of CLOCK_REALTIME as one of CLOCK_MONOTONIC, which the records of arrivals have."""
    return nanoseconds * 1e-9 - (time.time() - time.monotonic())


def _finish(client: LabProcess, record: Path) -> None:
    result = world.result_of(client, _LONGEST_S)
    if result["error"]:
        raise BenchmarkError(result["error"])
    world.wait_for(record.exists, "the record of arrivals")


def parse_report(text: str) -> dict[tuple[str, str], float]:
    """Shares of 1 by (shared object, symbol), out of what `perf report -t ';' --sort dso,sym` prints."""
    found: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(";")]
        if len(parts) == 3 and parts[0].endswith("%"):
            found[parts[1], parts[2]] = float(parts[0].rstrip("%")) / 100
    if not found:
        raise BenchmarkError(f"perf found no sample of the agent: {text[:200]!r}")
    return found


def parse_counts(text: str) -> dict[str, int]:
    """How often each system call was made, out of what `perf stat -x ';'` prints of their trace points."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"(\d+);[^;]*;syscalls:sys_enter_(\w+);", line)
        if match and int(match[1]):
            found[match[2]] = int(match[1])
    return found


def grouped(shares: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    """One entry for each symbol, the most frequent first: `place` is "user", "copy" or "kernel", and `share`.

    "copy" are the kernel's functions that move bytes between it and the program.
    """
    entries: list[dict[str, Any]] = []
    rest = {"user": 0.0, "copy": 0.0, "kernel": 0.0}
    for (dso, symbol), share in sorted(shares.items(), key=lambda item: -item[1]):
        in_kernel = dso.startswith("[kernel") or symbol.startswith("[k]")
        place = ("copy" if _COPYING.search(symbol) else "kernel") if in_kernel else "user"
        if share < _LEAST_SHARE:
            rest[place] += share
        else:
            name = symbol.removeprefix("[k]").removeprefix("[.]").strip()
            entries.append({"place": place, "symbol": name, "object": Path(dso).name, "share": share})
    others = ({"place": place, "symbol": "", "object": "", "share": share} for place, share in rest.items() if share)
    return [*entries, *others]


def place_shares(entries: list[dict[str, Any]]) -> dict[str, float]:
    """The whole share of each place."""
    total = {"user": 0.0, "copy": 0.0, "kernel": 0.0}
    for entry in entries:
        total[entry["place"]] += entry["share"]
    return total
