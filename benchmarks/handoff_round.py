"""One measurement of `make bench-handoff`: one transfer of one contender, in a lab of its own, through one case."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

from benchmarks import machine, server_side, world
from benchmarks.contenders import Contender
from benchmarks.handoff_cases import SETTLED_S, Case
from benchmarks.interleave import Wait
from benchmarks.server_side import Sample
from benchmarks.stalls import Moment, RecordTooShort, stalls
from benchmarks.world import BenchmarkError
from msocks_lab import ArrivalMeter, Lab, LabError, LabProcess, LinkCounters

_MOVED_BYTES = 1_000_000  # at least, after the event: far more than probes and control channels
_LOST_S = 30.0  # after the event: who has not ended then never will
_LOOK_AGAIN_S = 5.0
_SILENCE_S = "120"
_CUT_S, _REST_S = 1.7, 4.5  # from the start of a transfer to the event, and from there to its end
PATIENCE_S = 900.0
"""How long to wait for the machine to be quiet."""

_SAMPLE_S = 0.3
_FLOWING_BYTES = 100_000

Round = Generator[Wait, None, dict[str, Any]]


def estimate_s(case: Case, kind: type[Contender]) -> float:
    """About how long it takes until it waits for a link, or ends."""
    return kind.start_s + _CUT_S + (0.0 if case.waits_s else _REST_S)


def measurement(case: Case, kind: type[Contender], direction: str, jitter: float, patience_s: float) -> Round:
    """The raw result; yields while it waits. What goes wrong is part of it.

    `jitter` (seconds) delays the event, `patience_s` is for the machine to be quiet.
    """
    quiet = machine.wait_until_quiet(patience_s, _SAMPLE_S)
    with Lab(case.config) as lab:
        entry: dict[str, Any] = {"case": case.name, "contender": kind.name, "direction": direction}
        entry |= {"machine": asdict(quiet), "error": "", "stalls": [], "server": []}
        try:
            case.prepare(lab)
            contender = kind(lab, ipv6=case.ipv6)
            contender.start(case.links)
            yield from _transfer(lab, case, contender, jitter, entry)
        except (BenchmarkError, LabError, RecordTooShort) as error:
            entry["error"] = entry["error"] or str(error)
        if entry["error"]:
            entry["stalls"] = [
                {"figure": figure.name, "longest_ms": None, "resumed_ms": None, "amount_ms": None}
                for figure in case.figures
            ]
            entry["sockets"] = {
                host: lab.host(host).run(["ss", "-tnoi"]).stdout for host in ("mobile", "proxy", "server")
            }
            entry["logs"] = lab.logs()
        return entry


def _transfer(
    lab: Lab, case: Case, contender: Contender, jitter: float, entry: dict[str, Any]
) -> Generator[Wait, None, None]:
    record = lab.directory / "transfer.json"
    direction = entry["direction"]
    place = ["--record", str(record)] if direction == "download" else ["--id", record.stem]
    client = contender.transfer(f"--{direction}", str(case.transfer_bytes), *place, "--timeout", _SILENCE_S)

    def under_way() -> bool:
        crossed = [link.counters() for link in lab.links]
        return sum(link.bytes_up + link.bytes_down for link in crossed) > case.under_way_bytes

    world.wait_for(under_way, f"{case.under_way_bytes} bytes to cross the links")
    time.sleep(case.warm_s + jitter if case.warm_s else 0)
    if problem := contender.carried():
        raise BenchmarkError(problem)
    before = {link.name: link.counters() for link in lab.links}
    samples: list[Sample] = []
    moments = yield from case.play(lab, contender, lambda: samples.append(server_side.look(lab)))
    yield from _settle(lab, client, moments[-1])
    samples.append(server_side.look(lab))
    result = world.result_of(client, _LOST_S)
    samples.append(server_side.look(lab))
    crossed = {link.name: link.counters().since(before[link.name]) for link in lab.links}
    entry |= {
        "error": result["error"] or contender.check() or _unmoved(crossed["lte"]),
        "seconds": result.get("seconds"),
        "crossed_since": {name: asdict(counters) for name, counters in crossed.items()},
        "events": [asdict(event) for event in lab.events()],
        "moments": [asdict(moment) for moment in moments],
        "server": [sample.as_json() for sample in samples],
    }
    if not entry["error"]:
        world.wait_for(record.exists, "the record of arrivals")
        entry["stalls"] = [asdict(stall) for stall in stalls(ArrivalMeter.load(record), moments)]


def _settle(lab: Lab, client: LabProcess, latest: Moment) -> Generator[Wait, None, None]:
    """Wait for a while; and where nothing flows then, let others be measured meanwhile, until something does."""
    since = {link.name: link.counters() for link in lab.links}
    happened = latest.began if latest.usable is None else latest.usable
    time.sleep(max(0.0, happened + SETTLED_S - time.monotonic()))
    while client.poll() is None and time.monotonic() < happened + _LOST_S:
        if any(_payload(link.counters().since(since[link.name])) > _FLOWING_BYTES for link in lab.links):
            return
        yield Wait(time.monotonic() + _LOOK_AGAIN_S, exact=False)
    if client.poll() is None:
        client.terminate()


def _payload(counters: LinkCounters) -> int:
    return max(counters.bytes_up, counters.bytes_down)


def _unmoved(lte: LinkCounters) -> str:
    """What contradicts that data and acknowledgements crossed LTE, by the counters of the mobile's interface."""
    data, acknowledgements = max(lte.bytes_up, lte.bytes_down), min(lte.bytes_up, lte.bytes_down)
    if data < _MOVED_BYTES or acknowledgements < _MOVED_BYTES // 1000:
        return f"only {lte.bytes_down} bytes down and {lte.bytes_up} up crossed LTE: the transfer did not move"
    return ""
