"""`make bench-agent`: what the library, the agent and `msocks run` cost beside the splice that carries all of them.

    PYTHONPATH=. .venv/bin/python benchmarks/agent.py [--only gigabit] [--way run] [--rounds 1] [--output DIR]

Each round has one lab for each speed of the link, in which all ways take turns in random order. Profile and memory are
measured once.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, provenance, publish
from benchmarks.agent_field import SPEEDS, UNLIMITED, Speed, running
from benchmarks.agent_measurements import DIRECTIONS, Amounts, measure
from benchmarks.agent_page import page, plots
from benchmarks.agent_profile import place_shares, profile
from benchmarks.agent_ways import WAYS, Way
from benchmarks.many_flows import FLOW_BYTES, FLOWS, many_flows
from benchmarks.world import BenchmarkError
from msocks_lab import LabError, measurement_lock

_PARTS = (*(speed.name for speed in SPEEDS), "profile", "flows")
_PROFILED_BYTES = 12_000_000_000


def main() -> int:
    """Measure, and write the page."""
    options = _arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    versions = {name: provenance.debian_version(name) for name in ("haproxy", "linux-perf")}
    raw = {**provenance.provenance(versions), "seed": options.seed}
    ways = [way for way in WAYS if not options.way or way.name in options.way]
    amounts = _amounts(options.share)
    order = random.Random(options.seed)
    rounds: list[dict[str, Any]] = []
    for number in range(1, options.rounds + 1):
        speeds = [speed for speed in SPEEDS if speed.name in options.only]
        for speed in order.sample(speeds, len(speeds)):
            for entry in _turns(order.sample(ways, len(ways)), speed, amounts):
                rounds.append({"round": number, "measurement": speed.name, **entry})
                _tell(rounds[-1])
    raw |= {"amounts": asdict(amounts), "rounds": rounds}
    if "profile" in options.only:
        raw["profile"] = _once(lambda: _profile(options.share))
    if "flows" in options.only:
        raw["flows"] = _once(lambda: _flows(options))
    publish.publish(options.output, "agent", raw, page(raw), plots(raw))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", choices=_PARTS, help="may be given several times")
    parser.add_argument("--way", action="append", choices=[way.name for way in WAYS], help="may be given several times")
    parser.add_argument("--flows", type=int, default=FLOWS, help="through one agent, for its memory")
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--output", type=Path, default=publish.PAGES, help="directory for page, plot and raw rounds")
    # For trying whether everything works: figures of small amounts mean nothing.
    parser.add_argument("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.only = options.only or list(_PARTS)
    return options


def _amounts(share: float) -> Amounts:
    usual = Amounts()
    return Amounts(
        int(usual.gigabit * share),
        int(usual.unlimited * share),
        usual.round_trips_s * share,
        max(1, int(usual.connections * share)),
    )


def _turns(ways: list[Way], speed: Speed, amounts: Amounts) -> list[dict[str, Any]]:
    """All ways in turn, in one lab. What goes wrong is part of the result."""
    known = {"machine": asdict(machine.wait_until_quiet()), "error": ""}
    entries: list[dict[str, Any]] = []
    try:
        with measurement_lock(), running(speed) as field:
            for way in ways:
                entries.append({"contender": way.name, **known})
                try:
                    entries[-1] |= measure(field, way, speed, amounts)
                except (BenchmarkError, LabError) as error:
                    entries[-1] |= {"error": str(error), "logs": field.lab.logs()[-4000:]}
    except (BenchmarkError, LabError) as error:  # of the lab as a whole
        entries += [{"contender": way.name, **known, "error": str(error)} for way in ways[len(entries) :]]
    return entries


def _once(measurement: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured once. What goes wrong is the result."""
    machine.wait_until_quiet()
    with measurement_lock():
        try:
            return {"error": "", **measurement()}
        except (BenchmarkError, LabError) as error:
            print(f"    {error}", flush=True)
            return {"error": str(error)}


def _profile(share: float) -> dict[str, Any]:
    with running(UNLIMITED) as field:
        found = profile(field, _PROFILED_BYTES, share)
    for direction, one in found.items():
        shares = ", ".join(f"{place} {part:.0%}" for place, part in place_shares(one["symbols"]).items())
        print(f"    profile   {direction:15} {shares}; {sum(one['calls'].values()):,.0f} system calls/GB", flush=True)
    return found


def _flows(options: argparse.Namespace) -> dict[str, Any]:
    found = many_flows(options.flows, int(FLOW_BYTES * options.share))
    for level in found["levels"]:
        sizes = f"agent {level['agent'] / 2**20:.1f} MiB, kernel {level['kernel'] / 2**20:.0f} MiB"
        print(f"    flows     {level['name']:15} {sizes}, after {level['seconds']} s", flush=True)
    return found


def _tell(entry: dict[str, Any]) -> None:
    """A line about one entry."""
    text = entry["error"].strip().partition("\n")[0]
    if not text:
        rates = ", ".join(f"{entry[direction]['gbit_per_s']:.3f} {direction}" for direction in DIRECTIONS)
        latency = entry["latency"]
        text = f"{rates} Gbit/s, round trip {latency['median_us']:.1f} us, connecting {latency['connect_ms']:.2f} ms"
    print(f"{entry['round']:2}  {entry['measurement']:9} {entry['contender']:15} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
