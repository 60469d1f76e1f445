"""What the machine is doing besides: load, quiet, and what a tree of processes has used (proc(5))."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_IDLE_FIELDS = (3, 4)  # idle, iowait
_SAMPLE_S = 1.0
_BUSY = 0.25  # share of the machine's processor time that others may use at the start of a measurement
_PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True)
class Quiet:
    """The machine just before a measurement: nothing that was measured ran then."""

    busy: float  # share of all processor time, 0 to 1
    load_average: float  # of one minute
    waited_s: float


def _processor_times() -> tuple[float, float]:
    """Seconds that all processors together were busy and idle since boot."""
    times = [int(field) * _TICK_S for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = sum(times[index] for index in _IDLE_FIELDS)
    return sum(times) - idle, idle


def busy_seconds() -> float:
    """Processor seconds that the whole machine has spent, interrupts included."""
    return _processor_times()[0]


def wait_until_quiet(patience_s: float = _PATIENCE_S, sample_s: float = _SAMPLE_S) -> Quiet:
    """Wait until nobody else needs much of the machine, as a while of `sample_s` shows.

    After `patience_s` seconds go on all the same.
    """
    began = time.monotonic()
    told = False
    while True:
        busy, idle = _processor_times()
        time.sleep(sample_s)
        busy_now, idle_now = _processor_times()
        share = (busy_now - busy) / (busy_now - busy + idle_now - idle)
        waited = time.monotonic() - began - sample_s
        if share <= _BUSY or waited > patience_s:
            return Quiet(round(share, 3), os.getloadavg()[0], round(waited, 1))
        if not told:
            sys.stderr.write(f"Other work uses {share:.0%} of the machine; waiting for it to end ...\n")
            told = True


def tree(roots: Iterable[int]) -> list[int]:
    """These processes and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it has ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found = list(roots)
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found


def user_and_system_seconds(pids: Iterable[int]) -> tuple[float, float]:
    """Processor time that processes and their ended children have used, in user space and in the kernel."""
    user = system = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own_user, own_system, children_user, children_system = (int(field) * _TICK_S for field in fields[11:15])
        user += own_user + children_user
        system += own_system + children_system
    return user, system


def processor_seconds(pids: Iterable[int]) -> float:
    """Processor time, user and system, that processes and their ended children have used."""
    return sum(user_and_system_seconds(pids))


def resident_bytes(pids: Iterable[int]) -> int:
    """Memory of processes in bytes, what they share counted once (PSS, see proc_pid_smaps_rollup)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def resident_set_bytes(pid: int) -> int:
    """The resident set size of one process; cheap enough to be sampled often."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def kernel_bytes() -> int:
    """Memory that the kernel uses for itself: slabs, stacks and page tables of the whole machine."""
    wanted = {"Slab:", "KernelStack:", "PageTables:"}
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] in wanted)
