"""What `make bench-splice` measures of idle sessions: what each takes, how many can be, and what they leave behind."""

from __future__ import annotations

import contextlib
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.bpf_maps import maps_of
from benchmarks.compiled import program
from benchmarks.splice_contenders import SESSION_SERVERS, SESSIONS_EACH, SESSIONS_PORT, Contender
from benchmarks.splice_flows import PARALLEL, result_of, serving
from benchmarks.summary import slope
from benchmarks.world import BenchmarkError
from msocks_lab import LabProcess

MEMORY_SESSIONS = 10_000
LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Parts of the most sessions. The first do not count: they take what the kernel's slabs have left over."""

_SETTLE_S = 1.0
_FORGOTTEN_S = 200.0  # TIME-WAIT lasts 60 s
_CHURN_S = 600.0
_COUNTED = ("sockets", "descriptors", "entries")


def all_kernel_bytes() -> int:
    """Memory of the kernel of the machine: slabs, page tables, what vmalloc gave, and what is there per processor.

    Unlike `machine.kernel_bytes` with BPF maps of every kind, and without stacks twice: vmalloc gives those.
    """
    wanted = {"Slab:", "PageTables:", "VmallocUsed:", "Percpu:"}
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] in wanted)


def snapshot(contender: Contender) -> dict[str, Any]:
    """What a contender holds at present, and the kernel of the whole machine.

    `sockets` are the TCP sockets of the host in the middle, `time_wait` those in TIME-WAIT, `entries` the entries of
    BPF maps whose entries come and go.
    """
    text = contender.network.lab.proxy.run(["cat", "/proc/net/sockstat", "/proc/net/sockstat6"]).stdout
    lines = {words[0]: dict(zip(words[1::2], words[2::2], strict=False)) for words in map(str.split, text.splitlines())}
    maps = maps_of(contender.pids)
    return {
        "kernel": all_kernel_bytes(),
        "program": machine.resident_bytes(contender.pids),
        "descriptors": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in contender.pids),
        "sockets": int(lines["TCP:"]["inuse"]) + int(lines["TCP6:"]["inuse"]),
        "time_wait": int(lines["TCP:"]["tw"]),
        "entries": sum(found.entries or 0 for found in maps),
        "maps": [asdict(found) for found in maps],
    }


class Holders:
    """Client programs that hold idle sessions, each toward a server program of its own."""

    def __init__(self, contender: Contender, most: int) -> None:
        self._shares = math.ceil(most / SESSIONS_EACH)
        if self._shares > SESSION_SERVERS:
            raise BenchmarkError(f"At most {SESSION_SERVERS * SESSIONS_EACH} sessions can be held")
        sources = ",".join(contender.network.sources(4))
        self._clients: list[LabProcess] = []
        for index in range(self._shares):
            way = contender.way(4, SESSIONS_PORT + index)
            argv = [program("sessions"), "hold", way.every, sources, way.proxy, str(PARALLEL)]
            client = contender.network.lab.mobile.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._clients.append(client)

    def hold(self, sessions: int) -> None:
        """Open or close until so many idle. Raises BenchmarkError."""
        for index, client in enumerate(self._clients):
            share = sessions // self._shares + (index < sessions % self._shares)
            self._command(client, str(share))

    def check(self) -> None:
        """Send a byte over each session, and get it back. Raises BenchmarkError."""
        for client in self._clients:
            self._command(client, "check")

    @staticmethod
    def _command(client: LabProcess, line: str) -> None:
        assert client.stdin is not None
        assert client.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(f"{line}\n".encode())
            client.stdin.flush()
        if client.stdout.readline().decode().strip() != line:
            raise BenchmarkError(f"Idle sessions: {client.tail().strip()}")

    def stop(self) -> None:
        for client in self._clients:
            client.stop()


@contextlib.contextmanager
def _holders(contender: Contender, most: int) -> Iterator[Holders]:
    with contextlib.ExitStack() as stack:
        for index in range(math.ceil(most / SESSIONS_EACH)):
            stack.enter_context(serving(contender, "sessions", SESSIONS_PORT + index))
        holders = Holders(contender, most)
        stack.callback(holders.stop)
        yield holders


def memory(contender: Contender, most: int = MEMORY_SESSIONS) -> dict[str, Any]:
    """Bytes that each more idle session takes, in the contender's processes and in the kernel of the machine.

    The kernel's include the sockets of client and server; those alone are what IP forwarding shows.
    """
    most = min(most, contender.most_sessions)
    levels = []
    with _holders(contender, most) as holders:
        for part in LEVELS:
            holders.hold(int(most * part))
            time.sleep(_SETTLE_S)
            levels.append({"sessions": int(most * part), **snapshot(contender)})
    grown = {
        part: slope((level["sessions"], level[part]) for level in levels) for part in ("kernel", "program", "sockets")
    }
    return {"levels": levels, "per_session": grown}


def hold(contender: Contender, sessions: int) -> dict[str, Any]:
    """Many sessions at once, each of which still carries a byte; then none, and what is left of them."""
    before = snapshot(contender)
    began = time.monotonic()
    with _holders(contender, sessions) as holders:
        holders.hold(sessions)
        opened = time.monotonic() - began
        time.sleep(_SETTLE_S)
        during = snapshot(contender)
        holders.check()
        holders.hold(0)
        return {
            "sessions": sessions,
            "open_s": opened,
            "before": before,
            "during": during,
            **_forgotten(contender, before),
        }


def churn(contender: Contender, sessions: int) -> dict[str, Any]:
    """Open and close many sessions, a few at a time, and see what they have left behind."""
    way, sources = contender.way(4, SESSIONS_PORT), ",".join(contender.network.sources(4))
    with serving(contender, "sessions", SESSIONS_PORT):
        argv = [program("sessions"), "count", way.every, sources, way.proxy, str(PARALLEL)]
        # What is allocated once, and the table of sessions, which the process has mapped: each slot is touched now.
        fresh = snapshot(contender)
        result_of(contender, [*argv, str(sessions)], _CHURN_S)
        _forgotten(contender, fresh)
        before = snapshot(contender)
        result = result_of(contender, [*argv, str(sessions)], _CHURN_S)
        return {"sessions": sessions, **result, "before": before, **_forgotten(contender, before)}


def _forgotten(contender: Contender, before: dict[str, Any]) -> dict[str, Any]:
    """Wait until everything that is counted is back where it was and TIME-WAIT is over; what is there then."""
    began = time.monotonic()
    while True:
        after = snapshot(contender)
        waited = time.monotonic() - began
        back = after["time_wait"] == 0 and all(after[key] <= before.get(key, after[key]) for key in _COUNTED)
        if back or waited > _FORGOTTEN_S:
            return {"after": after, "forgotten_s": waited, "forgotten": back}
        time.sleep(_SETTLE_S)
