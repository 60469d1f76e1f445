"""`make chaos`: seeded storms over mixed traffic. Exit status 0 only if every session of every run was as it had to be.

    PYTHONPATH=. .venv/bin/python chaos/main.py [--minutes 60] [--seed N] [--datapath splice|relay]

Each run has a seed, which decides its links, what happens when, and the sessions; a failing one is printed as the
command that plays it again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT, provenance
from benchmarks.world import BenchmarkError

from chaos import storm
from msocks_lab import LabError


def main() -> int:
    """Run for as long as was said; say what was wrong."""
    options = _arguments()
    runs: list[dict[str, Any]] = []
    until, seed = time.monotonic() + options.minutes * 60, options.seed
    while not runs or time.monotonic() < until:
        print(f"Seed {seed}, {options.datapath}", flush=True)
        logs = options.logs / str(seed) if options.logs else None
        try:
            result = storm.run(seed, options.seconds, options.sessions, options.datapath, logs)
        except (BenchmarkError, LabError) as error:
            result = {"seed": seed, "sessions": [], "bytes": 0, "disturbances": {}, "problems": [str(error)]}
        runs.append(result)
        _tell(result, options)
        seed += 1
    _write(options.output, runs)
    failed = [result["seed"] for result in runs if result["problems"]]
    total = Counter[str]()
    for result in runs:
        total.update(result["disturbances"])
    sessions, amount = (sum(values) for values in zip(*((len(r["sessions"]), r["bytes"]) for r in runs), strict=True))
    print(f"{len(runs)} runs, {total.total()} disturbances, {sessions} sessions, {amount / 1e6:,.0f} MB checked")
    print(f"Failed seeds: {', '.join(map(str, failed))}" if failed else "Every session was as it had to be.")
    return 1 if failed else 0


def _tell(result: dict[str, Any], options: argparse.Namespace) -> None:
    count = sum(result["disturbances"].values())
    print(f"  {count} disturbances, {len(result['sessions'])} sessions, {result['bytes'] / 1e6:,.0f} MB", flush=True)
    for problem in result["problems"]:
        print(f"  FAILED: {problem}", flush=True)
    if result["problems"]:
        same = f"--seconds {options.seconds:g} --sessions {options.sessions} --datapath {options.datapath}"
        print(f"  again: PYTHONPATH=. .venv/bin/python chaos/main.py --minutes 0 --seed {result['seed']} {same}")


def _write(output: Path, runs: list[dict[str, Any]]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**provenance({}), "runs": runs}, indent=1) + "\n")
    print(f"Every session of every run: {output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="run after run for so long; 0 is one run")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30), help="of the first run")
    parser.add_argument("--seconds", type=float, default=60, help="of disturbances in each run")
    parser.add_argument("--sessions", type=int, default=12, help="at a time")
    parser.add_argument("--datapath", default="splice", choices=["splice", "relay"])
    parser.add_argument("--logs", type=Path, help="directory for what the programs log, kept")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "chaos.json", help="the raw result")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
