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
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.handoff_cases import CASES, WATCHED_S, Case, Moment
from benchmarks.handoff_page import page
from benchmarks.summary import LOST, shown
from benchmarks.world import BenchmarkError
from msocks_lab import STANDARD_LAB, ArrivalMeter, Lab, LabError, measure, measurement_lock

_UNDER_WAY_BYTES = 2_000_000
_WARM_S = 0.8
_JITTER_S = 0.3  # so that the cut meets every phase of the transfer
_LONGEST_S = 60.0
_LISTED_GAP_S = 0.03


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
    parser.add_argument("--contender", action="append", choices=[item.name for item in CONTENDERS])
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
        entry: dict[str, Any] = {"machine": asdict(quiet), "error": "", "stalls": {}}
        try:
            case.prepare(lab)
            contender = kind(lab)
            contender.start(case.links)
            entry |= _transfer(lab, case, contender, direction, jitter)
        except (BenchmarkError, LabError) as error:
            entry["error"] = str(error)
        if entry["error"]:
            entry["stalls"] = dict.fromkeys(case.figures)
            entry["sockets"] = {
                host: lab.host(host).run(["ss", "-tnoi"]).stdout for host in ("mobile", "proxy", "server")
            }
            entry["logs"] = lab.logs()
        return entry


def _transfer(lab: Lab, case: Case, contender: Contender, direction: str, jitter: float) -> dict[str, Any]:
    record = lab.directory / "transfer.json"
    place = ["--record", str(record)] if direction == "download" else ["--id", record.stem]
    client = contender.transfer(f"--{direction}", str(case.transfer_bytes), *place)
    wifi = lab.link("wifi")

    def under_way() -> bool:
        crossed = wifi.counters()
        return max(crossed.bytes_up, crossed.bytes_down) > _UNDER_WAY_BYTES

    world.wait_for(under_way, f"{_UNDER_WAY_BYTES} bytes over Wi-Fi")
    time.sleep(_WARM_S + jitter)
    crossed = {link.name: link.counters() for link in lab.links}
    moments = case.play(lab, contender)
    result = world.result_of(client, _LONGEST_S)
    after = {link.name: asdict(link.counters().since(crossed[link.name])) for link in lab.links}
    entry = {
        "seconds": result.get("seconds"),
        "crossed_since": after,
        "events": [asdict(event) for event in lab.events()],
        "moments": [asdict(moment) for moment in moments],
    }
    problem = result["error"] or contender.check()
    if not record.exists():
        return entry | {"error": problem or "there is no record of arrivals"}
    entry |= _stalls(ArrivalMeter.load(record), moments)
    if problem:
        entry["error"] = problem
    return entry


def _stalls(meter: ArrivalMeter, moments: list[Moment]) -> dict[str, Any]:
    """The longest gap after each moment, in ms, and all noticeable ones."""
    stalls, noticeable = {}, {}
    ends = [*(moment.began for moment in moments[1:]), float("inf")]
    for moment, end in zip(moments, ends, strict=True):
        if meter.times[-1] < (moment.usable or moment.began) + WATCHED_S:
            return {"error": f"the transfer ended less than {WATCHED_S} s after {moment.figure}", "gaps": {}}
        gap = meter.longest_gap(since=moment.began, until=end)
        began = moment.began if moment.usable is None else moment.usable
        milliseconds = gap.seconds * 1000 if moment.usable is None else (gap.ended - moment.usable) * 1000
        stalls[moment.figure] = round(milliseconds, 1)
        noticeable[moment.figure] = [
            {"at_ms": round((item.began - began) * 1000, 1), "ms": round(item.seconds * 1000, 1)}
            for item in meter.gaps(since=moment.began, until=end)
            if item.seconds >= _LISTED_GAP_S
        ]
    return {"stalls": stalls, "gaps": noticeable}


def _tell(entry: dict[str, Any]) -> None:
    figures = ", ".join(f"{name} {shown(LOST if ms is None else ms)}" for name, ms in entry["stalls"].items())
    head = f"{entry['round']:2}  {entry['contender']:13} {entry['direction']:9} {figures} ms"
    print(head + (f"   {entry['error']}" if entry["error"] else ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
