"""Much data through agent and proxy, with moves all along, while the memory of both is sampled."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

from benchmarks import machine, world
from benchmarks.summary import growth
from benchmarks.world import AGENT_PORT, BenchmarkError
from msocks_lab import Lab, LabConfig, LabProcess, LinkConfig

FLAT_BYTES = 2 * 1024 * 1024
"""Growth that is not counted as such: an allocator's arenas come and go by so much."""

_LAB = LabConfig([LinkConfig("one", fat=True), LinkConfig("two", fat=True)])
_SAMPLE_S = 0.1
_SECONDS_PER_GB = 600.0


@dataclass(frozen=True, slots=True)
class Volume:
    """One transfer: bytes each way, bytes per second each way (0: as fast as it goes), seconds between moves."""

    bytes: int
    rate: int
    move_every_s: float


class Sampler:
    """Samples the resident set of processes every 0.1 s, for as long as the `with` block."""

    def __init__(self, processes: dict[str, LabProcess]) -> None:
        self.samples: dict[str, list[int]] = {name: [] for name in processes}
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            for name, process in self._processes.items():
                self.samples[name].append(machine.resident_set_bytes(process.pid))


def run(volume: Volume, seed: int) -> dict[str, Any]:
    """One transfer in a lab of its own; its raw result. Raises BenchmarkError, LabError."""
    chance = random.Random(seed)
    with Lab(_LAB) as lab:
        world.start_pattern_server(lab)
        product = world.start_product(lab)
        links = [link.name for link in lab.links]
        product.wait_links(links)
        amounts = ["--download", str(volume.bytes), "--upload", str(volume.bytes), "--rate", str(volume.rate)]
        moves = 0
        with Sampler({"agent": product.agent, "proxy": product.proxy}) as sampler:
            began = time.monotonic()
            client = world.bulk_client(lab, *amounts, "--socks", f"127.0.0.1:{AGENT_PORT}")
            while client.poll() is None and time.monotonic() < began + _SECONDS_PER_GB * volume.bytes * 1e-9:
                time.sleep(volume.move_every_s * chance.uniform(0.8, 1.2))
                if any(flow["state"] == "live" for flow in product.listed("flows")):
                    moves += product.msocks("move", "all", "--to", links[(moves + 1) % len(links)]).returncode == 0
            seconds = time.monotonic() - began
        error = world.result_of(client, 1.0)["error"]
        if error:
            raise BenchmarkError(f"The transfer of {volume.bytes} bytes each way failed: {error}\n{lab.logs()}")
        return {
            "bytes_each_way": volume.bytes,
            "rate_limit": volume.rate,
            "seconds": round(seconds, 1),
            "moves": moves,
            "server_connections": lab.server.accepted_connections(),
            "resident_bytes": sampler.samples,
            "growth_bytes": {name: growth(samples) for name, samples in sampler.samples.items()},
        }


def failures(result: dict[str, Any]) -> list[str]:
    """What a result lacks; nothing where memory stayed flat and the session stayed one."""
    problems = [
        f"the {name} grew by {grown / 1e6:.1f} MB"
        for name, grown in result["growth_bytes"].items()
        if grown > FLAT_BYTES
    ]
    if not result["moves"]:
        problems.append("the session never moved")
    if result["server_connections"] != 1:
        problems.append(f"the server accepted {result['server_connections']} connections for one session")
    return problems
