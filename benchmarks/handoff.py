"""`make bench-handoff`: how long a transfer stalls when its network changes, beside what others offer.

    PYTHONPATH=. .venv/bin/python benchmarks/handoff.py [--rounds 7] [--cases down,silent --output DIR]

Every measurement has a lab of its own; rounds interleave all cases, directions and contenders in random order.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import handoff_round, provenance, publish, wireguard
from benchmarks.contenders import Contender
from benchmarks.handoff_cases import CASES, Case
from benchmarks.handoff_page import write_pages
from benchmarks.handoff_tables import shown_ms
from benchmarks.interleave import Task, interleaved
from msocks_lab import STANDARD_LAB, Lab, measure, measurement_lock

_JITTER_S = 0.3  # so that the cut meets every phase of the transfer
_DEBIAN = ("mptcpize", "microsocks", "wireguard-go", "iproute2")

Planned = tuple[Case, type[Contender], str]


def main() -> int:
    """Measure, and write the page."""
    options = _arguments()
    plan = [
        (case, contender, direction)
        for case in CASES
        if case.name in options.cases
        for contender in case.contenders
        if contender.name in options.contenders
        for direction in case.directions
    ]
    print(f"{options.rounds} rounds of {len(plan)} measurements", flush=True)
    origin = provenance.provenance({name: provenance.debian_version(name) for name in _DEBIAN})
    began = time.monotonic()
    with measurement_lock():
        links = list(_validated_links())
        rounds = []
        for entry in interleaved(_tasks(plan, options)):
            rounds.append(entry)
            _tell(entry)
    wireguard.tidy()
    rounds.sort(key=lambda entry: int(entry["round"]))
    raw = {**origin, "seed": options.seed, "links": links, "lab": STANDARD_LAB.to_dict()}
    raw |= {"part": options.part, "minutes": round((time.monotonic() - began) / 60, 1), "rounds": rounds}
    publish.write_raw(options.output, "handoff", raw)
    write_pages(options.output)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1, help="of the order and the instants of the events")
    cases, contenders = (
        [case.name for case in CASES],
        list(dict.fromkeys(kind.name for c in CASES for kind in c.contenders)),
    )
    parser.add_argument("--cases", type=_names_of(cases), default=cases, metavar="NAME,...", help=", ".join(cases))
    parser.add_argument(
        "--contenders", type=_names_of(contenders), default=contenders, metavar="NAME,...", help=", ".join(contenders)
    )
    parser.add_argument(
        "--patience", type=float, default=handoff_round.PATIENCE_S, metavar="S", help="for the machine to be quiet"
    )
    parser.add_argument(
        "--output", type=Path, help="directory for page, plot and raw rounds; a part of the cases needs one of its own"
    )
    options = parser.parse_args()
    options.part = (options.cases, options.contenders) != (cases, contenders)
    if options.part and options.output in (None, publish.PAGES):
        parser.error("a part of the benchmark does not go into its page: give --output DIR")
    options.output = (options.output or publish.PAGES).resolve()
    return options


def _names_of(known: Sequence[str]) -> Any:
    def names(text: str) -> list[str]:
        given = text.split(",")
        if unknown := set(given) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: known are {', '.join(known)}")
        return [name for name in known if name in given]

    return names


def _validated_links() -> Iterator[dict[str, Any]]:
    """What the emulated links really do."""
    with Lab(STANDARD_LAB) as lab:
        for link in lab.links:
            yield measure(lab, link.name).to_dict()


def _tasks(plan: list[Planned], options: argparse.Namespace) -> list[Task[dict[str, Any]]]:
    order = random.Random(options.seed)
    return [
        _task(number, planned, order.uniform(0, _JITTER_S), options.patience)
        for number in range(1, options.rounds + 1)
        for planned in order.sample(plan, len(plan))
    ]


def _task(number: int, planned: Planned, jitter: float, patience_s: float) -> Task[dict[str, Any]]:
    case, kind, direction = planned

    def begin(alone: bool) -> handoff_round.Round:
        # Another one that waits for its link must not wait longer, and is part of what the machine does.
        patience = patience_s if alone else 0.0
        entry = yield from handoff_round.measurement(case, kind, direction, jitter, patience)
        return {"round": number, **entry}

    return Task(handoff_round.estimate_s(case, kind), begin)


def _tell(entry: dict[str, Any]) -> None:
    figures = ", ".join(
        f"{stall['figure']} {shown_ms(stall['resumed_ms'])} (longest {shown_ms(stall['longest_ms'])}, "
        f"256 KiB {shown_ms(stall['amount_ms'])})"
        for stall in entry["stalls"]
    )
    head = f"{entry['round']:2}  {entry['contender']:13} {entry['direction']:9} {figures} ms"
    print(head + (f"   {entry['error']}" if entry["error"] else ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
