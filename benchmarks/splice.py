"""`make bench-splice`: what the packets of a spliced session cost, beside IP forwarding by the same host and others.

    PYTHONPATH=. .venv/bin/python benchmarks/splice.py [--only latency] [--rounds 1] [--datapath relay] [--output DIR]

Every measurement of a round has hosts of its own (`DirectNetwork`), on which the contenders take turns in random
order, each alone.
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

from benchmarks import machine, provenance, publish, splice_flows, splice_sessions
from benchmarks.direct_network import DirectNetwork
from benchmarks.splice_contenders import (
    CONTENDERS,
    Beside,
    Contender,
    Dante,
    Forwarding,
    Haproxy,
    Microsocks,
    Msocks,
    MsocksOfMany,
)
from benchmarks.splice_flows import Durations
from benchmarks.splice_page import page, plots
from benchmarks.world import BenchmarkError
from msocks_lab import Lab, LabConfig, LabError, measurement_lock

Measurement = Callable[[Contender], dict[str, Any]]

TAKING_PART: dict[str, tuple[type[Contender], ...]] = {
    "latency": (Forwarding, Msocks, Beside, Dante, Haproxy),
    "programs": (Msocks,),
    "throughput": (Forwarding, Msocks, Dante, Haproxy),
    "rate": (Msocks, Dante, Microsocks),
    "memory": (Forwarding, Msocks, Dante, Microsocks, Haproxy),
    "hold": (Forwarding, MsocksOfMany),
    "churn": (Msocks,),
}
_ONCE = ("hold", "churn")  # long, and what they count is exact
_PINNED = ("latency", "programs")


def main() -> int:
    """Measure, and write the page."""
    options = _arguments()
    _allow_open_files()
    versions = {name: provenance.debian_version(name) for name in ("dante-server", "microsocks", "haproxy")}
    origin = provenance.provenance(versions)
    chosen = {name: _chosen(kinds, options) for name, kinds in TAKING_PART.items()}
    measurements = _measurements(options)
    order = random.Random(options.seed)
    rounds: list[dict[str, Any]] = []
    for number in range(1, options.rounds + 1):
        names = [name for name in options.only or TAKING_PART if number == 1 or name not in _ONCE]
        for name in order.sample(names, len(names)):
            kinds = order.sample(chosen[name], len(chosen[name]))
            for entry in _turns(kinds, measurements[name], options.datapath, pinned=name in _PINNED):
                rounds.append({"round": number, "measurement": name, **entry})
                _tell(rounds[-1])
    raw = {**origin, "seed": options.seed, "datapath": options.datapath}
    raw |= {"durations": asdict(_durations(options)), "rounds": rounds}
    publish.publish(options.output, "splice", raw, page(raw), plots(raw))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    durations = Durations()
    parser.add_argument("--rounds", type=int, default=7, help=f"of all but {' and '.join(_ONCE)}, which take one")
    parser.add_argument("--only", action="append", choices=list(TAKING_PART), help="may be given several times")
    parser.add_argument("--contender", action="append", choices=[kind.name for kind in CONTENDERS])
    parser.add_argument("--datapath", default="splice", choices=["splice", "relay", "auto"], help="of MSOCKS")
    parser.add_argument("--latency-seconds", type=float, default=durations.latency, metavar="S")
    parser.add_argument("--bulk-seconds", type=float, default=durations.bulk, metavar="S")
    parser.add_argument("--rate-seconds", type=float, default=durations.rate, metavar="S")
    parser.add_argument("--sessions", type=int, default=100_000, help="held at once, and opened and closed")
    parser.add_argument("--memory-sessions", type=int, default=splice_sessions.MEMORY_SESSIONS, metavar="N")
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--output", type=Path, default=publish.PAGES, help="directory for page, plots and raw rounds")
    options = parser.parse_args()
    options.output = options.output.resolve()
    return options


def _chosen(kinds: tuple[type[Contender], ...], options: argparse.Namespace) -> list[type[Contender]]:
    return [kind for kind in kinds if not options.contender or kind.name in options.contender]


def _durations(options: argparse.Namespace) -> Durations:
    return Durations(options.latency_seconds, options.bulk_seconds, options.rate_seconds)


def _measurements(options: argparse.Namespace) -> dict[str, Measurement]:
    durations = _durations(options)
    return {
        "latency": lambda contender: splice_flows.latency(contender, durations),
        "programs": lambda contender: splice_flows.programs(contender, durations),
        "throughput": lambda contender: splice_flows.throughput(contender, durations),
        "rate": lambda contender: splice_flows.rate(contender, durations),
        "memory": lambda contender: splice_sessions.memory(contender, options.memory_sessions),
        "hold": lambda contender: splice_sessions.hold(contender, min(options.sessions, contender.most_sessions)),
        "churn": lambda contender: splice_sessions.churn(contender, options.sessions),
    }


def _allow_open_files() -> None:
    """Let every program here, the peers included, hold as many connections as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _turns(
    kinds: list[type[Contender]], measurement: Measurement, datapath: str, *, pinned: bool
) -> list[dict[str, Any]]:
    """One measurement of some contenders in turn, on the same hosts. What goes wrong is part of the result."""
    entries = []
    quiet = machine.wait_until_quiet()
    with measurement_lock(), Lab(LabConfig()) as lab:
        network = DirectNetwork(lab)
        network.lay()
        for kind in kinds:
            entry: dict[str, Any] = {"contender": kind.name, "machine": asdict(quiet), "error": ""}
            try:
                with kind(network, datapath, pinned=pinned) as contender:
                    entry |= measurement(contender)
            except (BenchmarkError, LabError) as error:
                entry |= {"error": str(error), "logs": lab.logs("proxy")[-4000:]}
            entries.append(entry)
    return entries


def _tell(entry: dict[str, Any]) -> None:
    """A line about one entry."""
    match entry:
        case {"error": str(error)} if error:
            text = error.strip().splitlines()[-1]
        case {"measurement": "programs"}:
            text = ", ".join(f"{family} {name} {runs['runs']:.2f} x {runs['ns']:.0f} ns"
                             for family in ("ipv4", "ipv6") for name, runs in entry[family].items())  # fmt: skip
        case {"ipv4": _, "ipv6": _}:
            families = (f"{name} {entry[name]['mean_us']:.2f} / {entry[name]['median_us']:.2f} / "
                        f"{entry[name]['p99_us']:.2f}" for name in ("ipv4", "ipv6"))  # fmt: skip
            text = f"{', '.join(families)} us (mean / median / p99)"
        case {"down-1": _}:
            cases = [f"{way}-{flows}" for flows in splice_flows.FLOWS for way in splice_flows.DIRECTIONS]
            text = ", ".join(f"{case} {entry[case]['gbit_per_s']:.1f}" for case in cases) + " Gbit/s"
        case {"per_s": rate, "p99_us": late, "proxy_us": used}:
            text = f"{rate:.0f} connections/s, p99 {late / 1000:.2f} ms, {used:.0f} us each in the proxy"
        case {"per_session": size}:
            text = f"{size['program'] / 1024:.2f} KiB + {size['kernel'] / 1024:.2f} KiB in the kernel per session"
        case {"during": during, "open_s": seconds, "sessions": count}:
            text = f"{count} sessions in {seconds:.0f} s, {during['sockets']} sockets in the proxy"
        case {"before": before, "after": after}:
            text = ", ".join(f"{key} {before[key]} -> {after[key]}" for key in ("sockets", "descriptors", "entries"))
        case _:
            raise ValueError(f"not a measurement: {entry}")
    print(f"{entry['round']:2}  {entry['measurement']:10} {entry['contender']:11} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
