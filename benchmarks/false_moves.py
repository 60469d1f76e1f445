"""Six labs whose links lose and delay packets as bad ones do, and never go away: does any session move?

    PYTHONPATH=. .venv/bin/python benchmarks/false_moves.py [--minutes 10] [--output DIR]

They run at the same time. The page of `make bench-handoff` has the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, provenance, publish, world
from benchmarks.handoff_page import write_pages
from benchmarks.world import AGENT_PORT, PATTERN_PORT, BenchmarkError, Product
from msocks_lab import Lab, LabConfig, LabProcess, LinkConfig, LinkCounters, measurement_lock
from msocks_lab.process import python_argv

LOSS_PERCENT = 2
_LINKS = (
    LinkConfig("wifi", rtt_ms=5, rate_mbit=50, loss_percent=LOSS_PERCENT, jitter_ms=20),
    LinkConfig("lte", rtt_ms=50, rate_mbit=20, loss_percent=LOSS_PERCENT, jitter_ms=40),
)
_LOOK_S = 5.0
_END_S = 60.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the one session of a lab does all the time: bytes per second, or an echo every so many seconds."""

    name: str
    down: int = 0
    up: int = 0
    echo_every_s: float = 0.0


TRAFFIC = (
    Traffic("almost idle", echo_every_s=10.0),
    Traffic("requests and responses", echo_every_s=0.2),
    Traffic("download, 200 KB/s", down=200_000),
    Traffic("upload, 200 KB/s", up=200_000),
    Traffic("both ways, 100 KB/s", down=100_000, up=100_000),
    Traffic("download, 20 KB/s", down=20_000),
)


def main() -> int:
    """Measure, and write the page. Exit status 0 if no session moved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of each lab")
    parser.add_argument("--patience", type=float, default=900.0, metavar="S", help="for the machine to be quiet")
    parser.add_argument("--output", type=Path, default=publish.PAGES, help="directory with the results of handoff.py")
    options = parser.parse_args()
    origin = provenance.provenance({})
    quiet = machine.wait_until_quiet(options.patience)
    with measurement_lock(), contextlib.ExitStack() as stack:
        running = [_start(stack, number, traffic, options.minutes * 60) for number, traffic in enumerate(TRAFFIC, 1)]
        time.sleep(options.minutes * 60)
        labs = [each.end() for each in running]
    raw = {**origin, "minutes": options.minutes, "links": [asdict(link) for link in _LINKS], "labs": labs}
    raw["machine"] = asdict(quiet)
    publish.write_raw(options.output, "handoff-false-moves", raw)
    for lab in labs:
        print(f"{lab['traffic']:24} {lab['moves']} moves, {lab['crossed']['lte']['bytes_down']} bytes down LTE, "
              f"{lab['error'] or 'every byte right'}")  # fmt: skip
    if publish.read_raw(options.output, "handoff"):
        write_pages(options.output)
    return 1 if any(lab["moves"] or lab["error"] for lab in labs) else 0


@dataclass(slots=True)
class Running:
    """A lab that runs."""

    lab: Lab
    traffic: Traffic
    product: Product
    client: LabProcess
    events: LabProcess
    began: float
    since: dict[str, LinkCounters]

    def end(self) -> dict[str, Any]:
        """Let the session end; the raw result."""
        crossed = {link.name: asdict(link.counters().since(self.since[link.name])) for link in self.lab.links}
        flows = self.product.listed("flows")
        self.events.stop()
        try:
            out, _ = self.client.communicate(timeout=_END_S)
            error = (
                json.loads(out.splitlines()[-1])["error"] if out else self.client.tail().strip() or "it said nothing"
            )
        except subprocess.TimeoutExpired:
            self.client.kill()
            error = f"it did not end within {_END_S:.0f} s"
        lost = [link.emulator_counters() for link in self.lab.links]
        return {
            "traffic": self.traffic.name,
            "seconds": round(time.monotonic() - self.began, 1),
            "moves": sum(flow["moves"] for flow in flows),
            "links": [flow["link"] for flow in flows],
            "events": [json.loads(line) for line in self.events.output().splitlines() if line.startswith("{")],
            "crossed": crossed,
            "emulators": lost,
            "error": error or ("" if flows else "the agent lists no flow"),
        }


def _start(stack: contextlib.ExitStack, number: int, traffic: Traffic, seconds: float) -> Running:
    lab = stack.enter_context(Lab(LabConfig(_LINKS, seed=number)))
    world.start_pattern_server(lab)
    product = world.start_product(lab, datapath="splice")
    product.wait_links([link.name for link in lab.links])
    environment = {"MSOCKS_CONTROL": str(product.control)}
    events = lab.mobile.popen([world.MSOCKS, "flows", "--follow", "--json"], env=environment)
    client = _client(lab, traffic, seconds)
    world.wait_for(lambda: bool(product.listed("flows")), "the session to begin")
    return Running(
        lab, traffic, product, client, events, time.monotonic(), {link.name: link.counters() for link in lab.links}
    )


def _client(lab: Lab, traffic: Traffic, seconds: float) -> LabProcess:
    """It ends a little after the others have been looked at."""
    lasts = seconds + _LOOK_S * len(TRAFFIC)
    if not traffic.echo_every_s:
        amounts = ["--download", str(int(traffic.down * lasts)), "--upload", str(int(traffic.up * lasts))]
        rate = str(max(traffic.down, traffic.up))
        return world.bulk_client(
            lab, *amounts, "--rate", rate, "--timeout", "120", "--socks", f"127.0.0.1:{AGENT_PORT}"
        )
    echoes = [
        "--echo", str(int(lasts / traffic.echo_every_s)), "--interval", str(traffic.echo_every_s), "--timeout", "120",
    ]  # fmt: skip
    argv = python_argv("msocks_lab.pattern_client", "--socks", f"127.0.0.1:{AGENT_PORT}", *echoes)
    return lab.mobile.popen([*argv, lab.server.ipv4, str(PATTERN_PORT)], stdout=subprocess.PIPE)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchmarkError as failure:
        sys.exit(str(failure))
