"""`make bench-handoff`: how long a transfer stalls when its network changes, beside MPTCP on the same topology.

Every measurement has a lab of its own; rounds interleave all cases, directions and contenders in random order.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, provenance, publish, world
from benchmarks.contenders import MOBILE, Contender
from benchmarks.handoff_cases import CASES, Case
from benchmarks.handoff_page import page, shown_ms
from benchmarks.stalls import stalls
from benchmarks.world import BenchmarkError
from msocks_lab import STANDARD_LAB, ArrivalMeter, Lab, LabError, LinkCounters, measure, measurement_lock

_JITTER_S = 0.3  # so that the cut meets every phase of the transfer
_LONGEST_S = 60.0
_MOVED_BYTES = 4_000_000  # at least, after the event


def main() -> int:
    """Measure, and write the page."""
    options = _arguments()
    chosen = [case for case in CASES if not options.case or case.name in options.case]
    versions = {name: provenance.debian_version(name) for name in ("mptcpize", "iproute2")}
    origin = provenance.provenance(versions)
    plan = [
        (case, contender, direction)
        for case in chosen
        for contender in case.contenders
        if not options.contender or contender.name in options.contender
        for direction in ("download", "upload")
    ]
    order = random.Random(options.seed)
    with measurement_lock():
        links = list(_validated_links())
    rounds = []
    for number in range(1, options.rounds + 1):
        for case, contender, direction in order.sample(plan, len(plan)):
            entry = {"round": number, "case": case.name, "contender": contender.name, "direction": direction}
            entry |= _measurement(case(), contender, direction, order.uniform(0, _JITTER_S))
            rounds.append(entry)
            _tell(entry)
    raw = {**origin, "seed": options.seed, "links": links, "lab": STANDARD_LAB.to_dict(), "rounds": rounds}
    publish.publish(options.output, "handoff", raw, page(raw))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1, help="of the order and the instants of the events")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--contender", action="append", choices=[item.name for item in MOBILE])
    parser.add_argument("--output", type=Path, default=publish.PAGES, help="directory for the page and the raw rounds")
    options = parser.parse_args()
    options.output = options.output.resolve()
    return options


def _validated_links() -> Iterator[dict[str, Any]]:
    """What the emulated links really do."""
    with Lab(STANDARD_LAB) as lab:
        for link in lab.links:
            yield measure(lab, link.name).to_dict()


def _measurement(case: Case, kind: type[Contender], direction: str, jitter: float) -> dict[str, Any]:
    """One transfer in a lab of its own. What goes wrong is part of the result."""
    quiet = machine.wait_until_quiet()
    with measurement_lock(), Lab(STANDARD_LAB) as lab:
        entry: dict[str, Any] = {"machine": asdict(quiet), "error": "", "stalls": []}
        try:
            case.prepare(lab)
            contender = kind(lab)
            contender.start(case.links)
            entry |= _transfer(lab, case, contender, direction, jitter)
        except (BenchmarkError, LabError) as error:
            entry["error"] = str(error)
        if entry["error"]:
            entry["stalls"] = [{"figure": figure, "longest_ms": None, "resumed_ms": None} for figure in case.figures]
            entry["sockets"] = {
                host: lab.host(host).run(["ss", "-tnoi"]).stdout for host in ("mobile", "proxy", "server")
            }
            entry["logs"] = lab.logs()
        return entry


def _transfer(lab: Lab, case: Case, contender: Contender, direction: str, jitter: float) -> dict[str, Any]:
    record = lab.directory / "transfer.json"
    place = ["--record", str(record)] if direction == "download" else ["--id", record.stem]
    client = contender.transfer(f"--{direction}", str(case.transfer_bytes), *place)

    def under_way() -> bool:
        crossed = [link.counters() for link in lab.links]
        return sum(link.bytes_up + link.bytes_down for link in crossed) > case.under_way_bytes

    world.wait_for(under_way, f"{case.under_way_bytes} bytes to cross the links")
    time.sleep(case.warm_s + jitter if case.warm_s else 0)
    before = {link.name: link.counters() for link in lab.links}
    moments = case.play(lab, contender)
    result = world.result_of(client, _LONGEST_S)
    crossed = {link.name: link.counters().since(before[link.name]) for link in lab.links}
    entry = {
        "error": result["error"] or contender.check() or _unmoved(crossed["lte"]),
        "seconds": result.get("seconds"),
        "crossed_since": {name: asdict(counters) for name, counters in crossed.items()},
        "events": [asdict(event) for event in lab.events()],
        "moments": [asdict(moment) for moment in moments],
    }
    if not entry["error"]:
        world.wait_for(record.exists, "the record of arrivals")
        entry["stalls"] = [asdict(stall) for stall in stalls(ArrivalMeter.load(record), moments)]
    return entry


def _unmoved(lte: LinkCounters) -> str:
    """What contradicts that data and acknowledgements crossed LTE, by the counters of the mobile's interface."""
    data, acknowledgements = max(lte.bytes_up, lte.bytes_down), min(lte.bytes_up, lte.bytes_down)
    if data < _MOVED_BYTES or acknowledgements < _MOVED_BYTES // 1000:
        return f"only {lte.bytes_down} bytes down and {lte.bytes_up} up crossed LTE: the transfer did not move"
    return ""


def _tell(entry: dict[str, Any]) -> None:
    figures = ", ".join(
        f"{stall['figure']} {shown_ms(stall['resumed_ms'])} (longest {shown_ms(stall['longest_ms'])})"
        for stall in entry["stalls"]
    )
    head = f"{entry['round']:2}  {entry['contender']:13} {entry['direction']:9} {figures} ms"
    print(head + (f"   {entry['error']}" if entry["error"] else ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
