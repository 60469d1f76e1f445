"""`make bench-relay`: what it costs a connection to go through the proxy, beside programs that do comparable work.

Every measurement has a lab of its own, with links that nothing emulates; rounds interleave all relays and measurements
in random order.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, provenance, publish
from benchmarks.relay_measurements import MEASUREMENTS
from benchmarks.relay_page import page
from benchmarks.relays import RELAYS, Relay
from benchmarks.world import BenchmarkError
from msocks_lab import Lab, LabConfig, LabError, LinkConfig, measurement_lock

_LAB = LabConfig([LinkConfig("fat", fat=True)])


def main() -> int:
    """Measure, and write the page."""
    options = _arguments()
    _allow_open_files()
    versions = {
        "pproxy": provenance.python_version("pproxy"),
        "dante": provenance.debian_version("dante-server"),
    }
    origin = provenance.provenance(versions)
    chosen = [relay for relay in RELAYS if not options.relay or relay.name in options.relay]
    plan = [(relay, kind) for relay in chosen for kind in options.measure or MEASUREMENTS]
    order = random.Random(options.seed)
    rounds = []
    for number in range(1, options.rounds + 1):
        for relay, kind in order.sample(plan, len(plan)):
            entry = {"round": number, "relay": relay.name, "measurement": kind, **_measurement(relay, kind)}
            rounds.append(entry)
            _tell(entry)
    raw = {**origin, "seed": options.seed, "lab": _LAB.to_dict(), "rounds": rounds}
    publish.publish(options.output, "relay", raw, page(raw))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--relay", action="append", choices=[relay.name for relay in RELAYS])
    parser.add_argument("--measure", action="append", choices=list(MEASUREMENTS))
    parser.add_argument("--output", type=Path, default=publish.PAGES, help="directory for the page and the raw rounds")
    options = parser.parse_args()
    options.output = options.output.resolve()
    return options


def _allow_open_files() -> None:
    """Let every program here, the peers included, hold as many connections as the idle sessions need."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _measurement(kind: type[Relay], name: str) -> dict[str, Any]:
    """One measurement in a lab of its own. What goes wrong is part of the result."""
    quiet = machine.wait_until_quiet()
    with measurement_lock(), Lab(_LAB) as lab:
        entry: dict[str, Any] = {"machine": asdict(quiet), "error": ""}
        try:
            relay = kind(lab)
            relay.start()
            entry |= MEASUREMENTS[name](relay)
        except (BenchmarkError, LabError) as error:
            entry |= {"error": str(error), "logs": lab.logs()}
        return entry


def _tell(entry: dict[str, Any]) -> None:
    match entry:
        case {"error": str(error)} if error:
            text = error
        case {"down": down, "up": up}:
            text = f"{down['gbit_per_s']:.2f} Gbit/s down, {up['gbit_per_s']:.2f} up"
        case {"per_s": rate, "relay_us": used}:
            text = f"{rate:.0f} connections/s, {used:.0f} us each in the relay"
        case {"bytes_per_session": sizes}:
            text = ", ".join(f"{part} {size / 1024:.1f} KiB" for part, size in sizes.items()) + " per idle session"
        case _:
            raise ValueError(f"not a measurement: {entry}")
    print(f"{entry['round']:2}  {entry['relay']:13} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
