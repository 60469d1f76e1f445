"""What slow start alone takes: the first 256 KiB of an upload on a new TCP connection over LTE, beside an upload that
MSOCKS moves there.

    PYTHONPATH=. .venv/bin/python benchmarks/new_connection.py [--rounds 7] [--output DIR]

`make bench-handoff` runs this, too, and its page has the result.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import handoff_round, machine, provenance, publish, world
from benchmarks.contenders import Msocks, PlainTcp
from benchmarks.handoff_cases import CASES
from benchmarks.handoff_page import write_pages
from benchmarks.interleave import Task, interleaved
from benchmarks.stalls import AMOUNT_BYTES
from msocks_lab import STANDARD_LAB, ArrivalMeter, CutMode, Lab, LabError, measurement_lock

_BYTES = 2_000_000
_JITTER_S = 0.3  # so that the cut meets every phase of the transfer
_ENDED_S = 30.0
_DOWN = next(case for case in CASES if case.name == "down")


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1, help="of the order and the instants of the events")
    parser.add_argument(
        "--patience", type=float, default=handoff_round.PATIENCE_S, metavar="S", help="for the machine to be quiet"
    )
    parser.add_argument("--output", type=Path, default=publish.PAGES, help="directory with the results of handoff.py")
    options = parser.parse_args()
    origin = provenance.provenance({})
    order = random.Random(options.seed)
    rounds: list[dict[str, Any]] = []
    with measurement_lock():
        for number in range(1, options.rounds + 1):
            for name in order.sample((PlainTcp.name, Msocks.name), 2):
                entry = _moved(order.uniform(0, _JITTER_S), options.patience) if name == Msocks.name else None
                rounds.append({"round": number, **(entry or _new(options.patience))})
                print(f"{number:2}  {name:7} {rounds[-1]['amount_ms']} ms  {rounds[-1]['error']}", flush=True)
    publish.write_raw(options.output, "handoff-new-connection", {**origin, "seed": options.seed, "rounds": rounds})
    if publish.read_raw(options.output, "handoff"):
        write_pages(options.output)
    return 0


def _moved(jitter: float, patience_s: float) -> dict[str, Any]:
    """An upload through MSOCKS from the moment Wi-Fi goes down: as in `handoff.py`."""

    def begin(_alone: bool) -> handoff_round.Round:
        return handoff_round.measurement(_DOWN, Msocks, "upload", jitter, patience_s)

    (entry,) = interleaved([Task(0.0, begin)])
    found = {key: entry[key] for key in ("contender", "machine", "error")}
    return {**found, "amount_ms": entry["stalls"][0]["amount_ms"]}


def _new(patience_s: float) -> dict[str, Any]:
    """An upload over LTE alone from the moment its connection stands."""
    entry: dict[str, Any] = {"contender": PlainTcp.name, "amount_ms": None, "error": ""}
    entry["machine"] = asdict(machine.wait_until_quiet(patience_s))
    with Lab(STANDARD_LAB) as lab:
        try:
            lab.link("wifi").cut(CutMode.CARRIER)
            contender = PlainTcp(lab)
            contender.start(["lte"])
            record = lab.directory / "transfer.json"
            client = contender.transfer("--upload", str(_BYTES), "--id", record.stem)
            result = world.result_of(client, _ENDED_S)
            entry["error"] = result["error"]
            if not entry["error"]:
                world.wait_for(record.exists, "the record of arrivals")
                arrived = ArrivalMeter.load(record).time_of(AMOUNT_BYTES)
                entry["amount_ms"] = round((arrived - result["began"]) * 1000, 1)
        except (world.BenchmarkError, LabError) as error:
            entry["error"] = str(error)
    return entry


if __name__ == "__main__":
    sys.exit(main())
