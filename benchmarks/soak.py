"""`make soak`: many moves of many sessions, and much data with a flat memory.

Exit status 0 only if every byte was right, no session was lost, and memory stayed flat.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine, moves, provenance, publish, volume
from benchmarks.soak_page import page
from benchmarks.volume import Volume
from msocks_lab import measurement_lock

_STEADY = Volume(bytes=1_000_000_000, rate=50_000_000, move_every_s=1.0)


def main() -> int:
    """Run everything, write the page, judge."""
    options = _arguments()
    origin = provenance.provenance({})
    print(f"Seed {options.seed}", flush=True)
    volumes, problems = [], []
    amounts = (_STEADY, Volume(bytes=options.gigabytes * 1_000_000_000, rate=0, move_every_s=1.0))
    for amount in () if options.without_volumes else amounts:
        machine.wait_until_quiet()
        with measurement_lock():
            result = volume.run(amount, options.seed)
        volumes.append(result)
        problems += volume.failures(result)
        print(f"{amount.bytes * 1e-9:g} GB each way, {result['moves']} moves, {result['seconds']} s", flush=True)
    storms: list[dict[str, Any]] = []
    for number in range(options.storms):
        machine.wait_until_quiet()
        with measurement_lock():
            storm = moves.run(options.seed + number, options.moves, options.sessions, options.crashes)
        storms.append(storm)
        problems += moves.failures(storm, options.moves)
        print(f"{storm['session_moves']} session-moves, {len(storm['sessions'])} sessions, {storm['crashes']} crashes, "
              f"{storm['seconds']} s")  # fmt: skip
    raw = {**origin, "seed": options.seed, "volumes": volumes, "storms": storms, "problems": problems}
    publish.publish(options.output, options.page, raw, page(raw, options.page))
    for problem in problems:
        print(f"FAILED: {problem}")
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--without-volumes", action="store_true", help="the moves alone")
    parser.add_argument("--gigabytes", type=int, default=10, help="each way, as fast as it goes")
    parser.add_argument("--moves", type=int, default=moves.MOVES, help="session-moves of a run")
    parser.add_argument("--sessions", type=int, default=moves.SESSIONS, help="at a time")
    parser.add_argument("--crashes", type=int, default=0, help="of the proxy in a run, which splices then")
    parser.add_argument("--storms", type=int, default=1, help="runs of so many moves, each with a seed of its own")
    parser.add_argument("--page", default="soak", help="name of the page")
    parser.add_argument("--output", type=Path, default=publish.PAGES, help="directory for the page and the raw results")
    options = parser.parse_args()
    options.output = options.output.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
