"""What `make bench-splice` measures of packets on their way through the middle: round trips, throughput, connections.

Each returns figures of one contender that runs, in the units that their names end with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks import bpf_programs, machine
from benchmarks.compiled import program
from benchmarks.splice_contenders import BULK_PORT, ONE_PROCESSOR, PING_PONG_PORT, SESSIONS_PORT, Contender
from benchmarks.world import BenchmarkError

FLOWS = (1, 8)
DIRECTIONS = ("down", "up")
FAMILIES = (4, 6)
PARALLEL = 32

_WARM_UP = 2000  # round trips
_SPARE_S = 60.0


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds of one measurement of each kind."""

    latency: float = 2.0
    bulk: float = 2.0
    rate: float = 60.0


@contextmanager
def serving(contender: Contender, name: str, port: int, prefix: tuple[str, ...] = ()) -> Iterator[None]:
    """A server program on the server host, meanwhile."""
    server = contender.network.lab.server
    process = server.popen([*prefix, program(name), "serve", str(port)])
    try:
        server.wait_listening(port)
        yield
    finally:
        process.stop()


def result_of(contender: Contender, argv: list[str], seconds: float) -> dict[str, Any]:
    """What a client program on the mobile prints. Raises BenchmarkError where it says why there is nothing."""
    done = contender.network.lab.mobile.run(argv, check=False, timeout=seconds + _SPARE_S)
    if done.returncode:
        raise BenchmarkError(done.stderr.strip() or f"{argv[0]} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def latency(contender: Contender, durations: Durations) -> dict[str, Any]:
    """The round trip of one byte over a connection that stands, for IPv4 and IPv6; the contender has to be pinned."""
    figures: dict[str, Any] = {}
    with serving(contender, "ping_pong", PING_PONG_PORT, ONE_PROCESSOR):
        for family in FAMILIES:
            way = contender.way(family, PING_PONG_PORT)
            where = ["measure", way.first, way.proxy, str(_WARM_UP), str(durations.latency)]
            argv = [*ONE_PROCESSOR, program("ping_pong"), *where]
            figures[f"ipv{family}"] = result_of(contender, argv, durations.latency)
    return figures


def programs(contender: Contender, durations: Durations) -> dict[str, Any]:
    """What the same round trip takes in the BPF programs of a contender, which has to be pinned.

    For each program that runs: runs in a round trip, and nanoseconds each, the kernel's counting not included. Being
    counted makes the round trip longer, so that is another one than `latency` measures.
    """
    figures: dict[str, Any] = {}
    with serving(contender, "ping_pong", PING_PONG_PORT, ONE_PROCESSOR), bpf_programs.counting():
        for family in FAMILIES:
            way = contender.way(family, PING_PONG_PORT)
            where = ["measure", way.first, way.proxy, str(_WARM_UP), str(durations.latency)]
            before = bpf_programs.programs_of(contender.pids)
            result = result_of(contender, [*ONE_PROCESSOR, program("ping_pong"), *where], durations.latency)
            after = bpf_programs.programs_of(contender.pids)
            trips = result["round_trips"] + _WARM_UP
            figures[f"ipv{family}"] = {
                name: {"runs": (runs.count - before[name].count) / trips, "ns": (runs.ns - before[name].ns) / count}
                for name, runs in after.items()
                if (count := runs.count - before[name].count) > trips / 2
            }
    return figures


def throughput(contender: Contender, durations: Durations) -> dict[str, Any]:
    """One flow and several, each way: Gbit/s of payload, and processor seconds of the whole machine for each GB.

    `grown` are the bytes by which the contender's processes grew meanwhile, `passed` those of payload.
    """
    figures: dict[str, Any] = {}
    way = contender.way(4, BULK_PORT)
    memory = machine.resident_bytes(contender.pids)
    for flows in FLOWS:
        for direction in DIRECTIONS:
            with serving(contender, "bulk", BULK_PORT):
                what = [way.first, way.proxy, direction, str(flows), str(durations.bulk)]
                result = result_of(contender, [program("bulk"), "measure", *what], durations.bulk)
            figures[f"{direction}-{flows}"] = {
                "gbit_per_s": result["bytes"] * 8e-9 / result["seconds"],
                "machine_s_per_gb": result["busy_s"] / (result["bytes"] * 1e-9),
                **result,
            }
    passed = sum(case["bytes"] for case in figures.values())
    return {**figures, "grown": machine.resident_bytes(contender.pids) - memory, "passed": passed}


def rate(contender: Contender, durations: Durations) -> dict[str, Any]:
    """Connections per second, one round trip each; times from connect(2) to the byte's return.

    `proxy_us` is processor time of the contender's processes for each connection, `machine_us` the whole machine's.
    """
    way, sources = contender.way(4, SESSIONS_PORT), ",".join(contender.network.sources(4))
    with serving(contender, "sessions", SESSIONS_PORT):
        used, busy = machine.processor_seconds(contender.pids), machine.busy_seconds()
        what = [way.every, sources, way.proxy, str(PARALLEL), str(durations.rate)]
        result = result_of(contender, [program("sessions"), "rate", *what], durations.rate)
        used, busy = machine.processor_seconds(contender.pids) - used, machine.busy_seconds() - busy
    return {
        "per_s": result["connections"] / result["seconds"],
        "proxy_us": used * 1e6 / result["connections"],
        "machine_us": busy * 1e6 / result["connections"],
        **result,
    }
