"""What `make bench-agent` measures of one way: how fast bytes get through, and how long one of them takes."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import world
from benchmarks.agent_field import ECHO_PORT, Field, Speed
from benchmarks.agent_ways import Way, way_options, way_wrapper
from benchmarks.contenders import not_spliced
from benchmarks.splice_contenders import ONE_PROCESSOR
from benchmarks.world import PATTERN_PORT, BenchmarkError
from msocks_lab import ArrivalMeter, LabProcess
from msocks_lab.process import python_argv

DIRECTIONS = ("down", "up")
_SLOW_START = 0.1  # part of a transfer that does not count for the rate
_LONGEST_S = 120.0
_SETTLED_S = 0.05  # after which a session that is to be spliced is


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much of everything: bytes of one transfer at each speed, seconds of round trips, connections one by one."""

    gigabit: int = 200_000_000
    unlimited: int = 2_000_000_000
    round_trips_s: float = 0.5
    connections: int = 20

    def of(self, speed: Speed) -> int:
        """Bytes of one transfer."""
        return self.gigabit if speed.mbit is not None else self.unlimited


def measure(field: Field, way: Way, speed: Speed, amounts: Amounts) -> dict[str, Any]:
    """All of one way. Raises BenchmarkError."""
    transfers = {direction: throughput(field, way, direction, amounts.of(speed)) for direction in DIRECTIONS}
    return {**transfers, "latency": latency(field, way, amounts)}


def throughput(field: Field, way: Way, direction: str, amount: int) -> dict[str, Any]:
    """One connection that carries `amount` bytes in one direction, as fast as it can.

    Gbit/s of payload as the receiver gets it; processor seconds for each GB (10^9 bytes) of the whole machine, of the
    client, and of each program in between, in user space and in the kernel. Raises BenchmarkError.
    """
    record = field.lab.directory / f"{way.name}-{direction}.json"
    record.unlink(missing_ok=True)
    before = field.used()
    client = start_transfer(field, way, direction, amount, record.stem)
    wait_until_spliced(field, client)
    result = world.result_of(client, _LONGEST_S)
    if result["error"]:
        raise BenchmarkError(f"{direction}: {result['error']}")
    world.wait_for(record.exists, "the record of arrivals")
    after = field.used()
    meter = ArrivalMeter.load(record)
    if meter.total != amount:
        raise BenchmarkError(f"{direction}: {meter.total} of {amount} bytes arrived")
    begun = meter.time_of(int(amount * _SLOW_START))
    gigabytes = amount * 1e-9
    return {
        "gbit_per_s": (amount - meter.total_at(begun)) * 8e-9 / (meter.times[-1] - begun),
        "machine_s_per_gb": result["machine_s"] / gigabytes,
        "client_s_per_gb": result["client_s"] / gigabytes,
        **{
            name: {
                "user_s_per_gb": (user - before[name][0]) / gigabytes,
                "system_s_per_gb": (system - before[name][1]) / gigabytes,
            }
            for name, (user, system) in after.items()
        },
    }


def start_transfer(field: Field, way: Way, direction: str, amount: int, record: str) -> LabProcess:
    """A client that transfers; when the bytes arrived is in NAME.json of the lab's directory, with `record` as NAME."""
    lab = field.lab
    what = [f"--{direction}load", str(amount)]
    if direction == "down":
        what += ["--record", str(lab.directory / f"{record}.json")]
    else:
        what += ["--id", record]
    module = "benchmarks.streams_client" if way.streams else "benchmarks.bulk_client"
    unseen = [] if way.streams else ["--no-verify", "--no-receipt"]
    argv = python_argv(module, lab.server.ipv4, str(PATTERN_PORT), *way_options(way, lab), *what, *unseen)
    return lab.mobile.popen([*way_wrapper(way, field.product), *argv], stdout=subprocess.PIPE)


def wait_until_spliced(field: Field, client: LabProcess) -> None:
    """Return when the client's bytes flow. Raises BenchmarkError where its session is not spliced."""

    def stands() -> bool:
        sockets = field.lab.server.tcp_sockets()
        return any((each["local_port"], each["state"]) == (PATTERN_PORT, "ESTABLISHED") for each in sockets)

    world.wait_for(lambda: stands() or client.poll() is not None, "the client to connect")
    time.sleep(_SETTLED_S)
    problem = not_spliced(field.lab)
    if problem and stands():
        client.stop()
        raise BenchmarkError(problem)


def latency(field: Field, way: Way, amounts: Amounts) -> dict[str, Any]:
    """Connecting, and the round trip of one byte, with client, server and everything in between on one processor.

    So it never halts: to wake a halted virtual processor takes many times what is measured. Raises BenchmarkError.
    """
    lab = field.lab
    what = ["--connections", str(amounts.connections), "--seconds", str(amounts.round_trips_s)]
    streams = ["--streams"] if way.streams else []
    argv = python_argv(
        "benchmarks.round_trips", lab.server.ipv4, str(ECHO_PORT), *way_options(way, lab), *what, *streams
    )
    with field.on_one_processor():
        wrapped = [*ONE_PROCESSOR, *way_wrapper(way, field.product), *argv]
        result = world.result_of(lab.mobile.popen(wrapped, stdout=subprocess.PIPE), _LONGEST_S)
    error = result.pop("error")
    if error:
        raise BenchmarkError(f"round trips: {error}")
    return result
