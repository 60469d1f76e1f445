"""What `make bench-relay` measures of one relay: throughput, connections per second, memory per idle session."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from benchmarks import machine, world
from benchmarks.relays import Relay
from benchmarks.summary import slope
from benchmarks.world import BenchmarkError
from msocks_lab import ArrivalMeter
from msocks_lab.process import python_argv

BULK_BYTES = 1_000_000_000
RATE_S = 2.0
IDLE_LEVELS = (400, 700, 1000, 1300, 1600)
"""The first sessions do not count: they take what the kernel's slabs have left over from earlier work."""

_ECHO_PORT = 9001
_SLOW_START = 0.1  # part of a transfer that does not count for the rate
_LONGEST_S = 120.0
_SETTLE_S = 0.4


def throughput(relay: Relay) -> dict[str, Any]:
    """One connection, as fast as it can go, each way: Gbit/s of payload, and processor seconds for each GB.

    `machine_s_per_gb` is the whole machine's, client and server included, `relay_s_per_gb` that of the relay's
    processes.
    """
    world.start_pattern_server(relay.lab)
    measured: dict[str, Any] = {}
    for direction in ("down", "up"):
        record = relay.lab.directory / f"bulk-{direction}.json"
        place = ["--record", str(record)] if direction == "down" else ["--id", record.stem]
        busy, used = machine.busy_seconds(), _used_seconds(relay)
        what = [f"--{direction}load", str(BULK_BYTES), "--no-verify", "--no-receipt"]
        client = world.bulk_client(relay.lab, *what, *place, *_way(relay))
        result = world.result_of(client, _LONGEST_S)
        if result["error"]:
            raise BenchmarkError(f"{direction}: {result['error']}")
        world.wait_for(record.exists, "the record of arrivals")
        meter = ArrivalMeter.load(record)
        if meter.total != BULK_BYTES:
            raise BenchmarkError(f"{direction}: {meter.total} of {BULK_BYTES} bytes arrived")
        begun = meter.time_of(int(meter.total * _SLOW_START))
        counted = meter.total - meter.total_at(begun)
        measured[direction] = {
            "gbit_per_s": counted * 8e-9 / (meter.times[-1] - begun),
            "machine_s_per_gb": (machine.busy_seconds() - busy) / (BULK_BYTES * 1e-9),
            "relay_s_per_gb": (_used_seconds(relay) - used) / (BULK_BYTES * 1e-9),
        }
    return measured


def connection_rate(relay: Relay) -> dict[str, Any]:
    """Connections per second, one round trip each, 32 at a time; the relay's processor time for each in us."""
    _start_echo(relay)
    used = _used_seconds(relay)
    client = relay.lab.mobile.popen(_short_connections(relay, "--seconds", str(RATE_S)), stdout=subprocess.PIPE)
    result = world.result_of(client, _LONGEST_S)
    if result["error"]:
        raise BenchmarkError(result["error"])
    count = result["connections"]
    return {
        "connections": count,
        "per_s": count / result["seconds"],
        "relay_us": (_used_seconds(relay) - used) * 1e6 / count,
    }


def idle_memory(relay: Relay) -> dict[str, Any]:
    """Bytes that each more idle session takes: in each of the relay's programs, and in the kernel of the machine.

    The kernel's includes the sockets of client and server; those alone are what IP forwarding shows.
    """
    _start_echo(relay)
    argv = _short_connections(relay, "--hold")
    client = relay.lab.mobile.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None
    assert client.stdout is not None
    levels: list[dict[str, Any]] = []
    for count in IDLE_LEVELS:
        client.stdin.write(f"{count}\n".encode())
        client.stdin.flush()
        if client.stdout.readline().decode().strip() != str(count):
            raise BenchmarkError(f"{count} idle connections did not come about: {client.tail().strip()}")
        time.sleep(_SETTLE_S)
        programs = {
            part: machine.resident_bytes(machine.tree([process.pid])) for part, process in relay.processes.items()
        }
        levels.append({"sessions": count, "kernel": machine.kernel_bytes(), **programs})
    grown = {part: slope((level["sessions"], level[part]) for level in levels) for part in ("kernel", *relay.processes)}
    return {"levels": levels, "bytes_per_session": grown}


def _way(relay: Relay) -> list[str]:
    return ["--socks", relay.socks] if relay.socks else []


def _short_connections(relay: Relay, *arguments: str) -> list[str]:
    server = relay.lab.server.ipv4
    return python_argv("benchmarks.short_connections", server, str(_ECHO_PORT), *_way(relay), *arguments)


def _start_echo(relay: Relay) -> None:
    relay.lab.server.popen(python_argv("benchmarks.echo_server", str(_ECHO_PORT)))
    relay.lab.server.wait_listening(_ECHO_PORT)


def _used_seconds(relay: Relay) -> float:
    return machine.processor_seconds(machine.tree(process.pid for process in relay.processes.values()))


MEASUREMENTS = {"throughput": throughput, "rate": connection_rate, "idle": idle_memory}
