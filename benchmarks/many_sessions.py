"""A thousand sessions when their link dies: how long until all of them run again, and what that costs.

    PYTHONPATH=. .venv/bin/python benchmarks/many_sessions.py [--sessions 1000] [--rounds 3] [--output DIR]

`make bench-handoff` runs this, too, and its page has the result.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, provenance, publish, world
from benchmarks.handoff_page import write_pages
from benchmarks.world import AGENT_PORT, BenchmarkError, Product
from msocks_lab import STANDARD_LAB, CutMode, Lab, LabError, LabProcess, measurement_lock
from msocks_lab.process import python_argv

SESSIONS = 1000
PERIOD_S = 0.5
WATCHED_S = 15.0
_PORT = 9001
_STEADY_S = 3.0
_SAMPLE_S = 0.1
_UNDER_WAY_S = 0.03  # so long after the cut what had crossed the link before may still come
_EVENTS = (CutMode.CARRIER, CutMode.SILENT)


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--patience", type=float, default=900.0, metavar="S", help="for the machine to be quiet")
    parser.add_argument("--output", type=Path, default=publish.PAGES, help="directory with the results of handoff.py")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    origin = provenance.provenance({})
    order = random.Random(options.seed)
    rounds: list[dict[str, Any]] = []
    for number in range(1, options.rounds + 1):
        for mode in order.sample(_EVENTS, len(_EVENTS)):
            entry: dict[str, Any] = {"round": number, "event": mode.value}
            entry |= _measurement(mode, options.sessions, options.patience)
            rounds.append(entry)
            _tell(entry)
    raw = {**origin, "seed": options.seed, "sessions": options.sessions, "period_s": PERIOD_S, "rounds": rounds}
    publish.write_raw(options.output, "handoff-many", raw)
    if publish.read_raw(options.output, "handoff"):
        write_pages(options.output)
    return 0


def _measurement(mode: CutMode, sessions: int, patience_s: float) -> dict[str, Any]:
    """One event in a lab of its own. What goes wrong is part of the result."""
    quiet = machine.wait_until_quiet(patience_s)
    with measurement_lock(), Lab(STANDARD_LAB) as lab:
        entry: dict[str, Any] = {"machine": asdict(quiet), "error": ""}
        try:
            entry |= _event(lab, mode, sessions)
        except (BenchmarkError, LabError) as error:
            entry |= {"error": str(error), "logs": lab.logs()}
        return entry


def _event(lab: Lab, mode: CutMode, sessions: int) -> dict[str, Any]:
    lab.server.popen(python_argv("benchmarks.ticking", "serve", str(_PORT)))
    lab.server.wait_listening(_PORT)
    product = world.start_product(lab, datapath="splice")
    product.wait_links([link.name for link in lab.links])
    record = lab.directory / "ticking.json"
    began = time.monotonic()
    arguments = [lab.server.ipv4, str(_PORT), str(AGENT_PORT), str(sessions), str(PERIOD_S), str(record)]
    argv = python_argv("benchmarks.ticking", "run", *arguments)
    client = world.start_ready(lab.mobile.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    opened = time.monotonic() - began
    toward_server = [socket for socket in lab.proxy.tcp_sockets() if socket["remote_port"] == _PORT]
    if toward_server:
        raise BenchmarkError(f"{len(toward_server)} sessions are not spliced")
    steady = _used(product)
    time.sleep(_STEADY_S)
    steady = {name: (used - steady[name]) / _STEADY_S for name, used in _used(product).items()}
    before = _used(product)
    cut = lab.link("wifi").cut(mode).began
    samples = []
    while time.monotonic() < cut + WATCHED_S:
        samples.append(
            {"at": round(time.monotonic() - cut, 3), **{n: u - before[n] for n, u in _used(product).items()}}
        )
        time.sleep(_SAMPLE_S)
    found = _end(client, record)
    resumed = [resumed_s(each["arrivals"], cut) for each in found]
    alive = [each for each in resumed if each is not None]
    worst = max(alive, default=WATCHED_S)
    spent = next((sample for sample in samples if sample["at"] >= worst), samples[-1])
    return {
        "open_s": round(opened, 2),
        "resumed_s": resumed,
        "problems": [f"session {number}: {each['problem']}" for number, each in enumerate(found) if each["problem"]],
        "processor_s": {name: round(spent[name], 2) for name in steady},
        "steady_share": {name: round(used, 3) for name, used in steady.items()},
        "samples": samples,
        "connections": lab.server.accepted_connections(),
    }


def resumed_s(arrivals: list[float], cut: float) -> float | None:
    """How long after the cut a session's bytes came again; None where they never did."""
    later = (at - cut for at in arrivals if at > cut + _UNDER_WAY_S)
    return next((round(seconds, 4) for seconds in later), None)


def _end(client: LabProcess, record: Path) -> list[dict[str, Any]]:
    assert client.stdin is not None
    client.stdin.write(b"end\n")
    client.stdin.flush()
    client.wait(60)
    world.wait_for(record.exists, "the record of the sessions")
    found: list[dict[str, Any]] = json.loads(record.read_text())["sessions"]
    return found


def _used(product: Product) -> dict[str, float]:
    """Processor seconds of proxy and agent so far."""
    processes = {"proxy": product.proxy, "agent": product.agent}
    return {name: machine.processor_seconds(machine.tree([each.pid])) for name, each in processes.items()}


def _tell(entry: dict[str, Any]) -> None:
    if entry["error"]:
        text = entry["error"]
    else:
        alive = sorted(each for each in entry["resumed_s"] if each is not None)
        used = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in entry["processor_s"].items())
        text = f"{len(alive)} run again, median {alive[len(alive) // 2]:.2f} s, worst {alive[-1]:.2f} s; {used}"
        text += f"; {len(entry['problems'])} problems" if entry["problems"] else ""
    print(f"{entry['round']:2}  {entry['event']:8} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
