"""The part of the page of `make bench-splice` that tells of idle sessions."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.bars import Bar
from benchmarks.splice_rounds import TITLES, Rounds, cell, verdict
from benchmarks.summary import Spread, markdown_table

_MEMORY = """\
## Memory of an idle session

What each more session takes after its byte came back, in KiB: the slope over the levels of each round (from {least:,}
to {most:,} sessions of MSOCKS) of the memory of the proxy's processes (PSS) and of the kernel's (slabs, page tables,
vmalloc, per processor: BPF maps are in there), less what the same connections take of the kernel when they are
forwarded; and the sockets that the host in the middle has for each.

![Memory of an idle session](splice-memory.svg)

{table}

{verdict}
"""
_MAPS = """\
What the BPF maps of MSOCKS take, in KiB as the kernel accounts for it. Arrays have all their memory from the start, so
it is in no slope; of the array of sessions that is *bytes per slot* for each one that could be.

{table}
"""
_HOLD = """\
## Many sessions at once

{sessions:,} idle sessions through MSOCKS, opened 32 at a time in {open_s:.0f} s. Then a byte went once more over each
of them, all were closed, and {forgotten_s:.0f} s later {verdict}
{each}

{table}
"""
_CHURN = """\
## What sessions leave behind

{sessions:,} sessions through MSOCKS opened and closed, 32 at a time ({per_s:,.0f} per second), after as many before
them. {forgotten_s:.0f} s later (TIME-WAIT lasts 60) {verdict}

{table}

{grown}
"""
_COUNTS = {
    "sockets": "TCP sockets in the middle",
    "time_wait": "of them in TIME-WAIT",
    "descriptors": "descriptors of the proxy",
    "entries": "entries of BPF maps",
}
_LEFT_BYTES = 10.0  # of 100,000 sessions a megabyte, which is what the memory of any process comes and goes by
_SIZES = {"program": "memory of the proxy, MiB", "kernel": "memory of the kernel, MiB"}


def _slopes(rounds: Rounds, name: str) -> tuple[list[float], list[float]]:
    """KiB that each more session takes of a contender's processes, and of the kernel in the middle, in each round."""

    def grown(part: str, contender: str) -> list[float]:
        return [entry["per_session"][part] / 1024 for entry in rounds.of("memory", contender)]

    ends = statistics.median(grown("kernel", "forwarding") or [0.0])
    return grown("program", name), [value - ends for value in grown("kernel", name)]


def memory_bars(rounds: Rounds) -> list[Bar]:
    """For the plot: KiB that each more session takes, program and kernel together."""
    bars = []
    for name in rounds.contenders("memory"):
        both = tuple(map(sum, zip(*_slopes(rounds, name), strict=True)))
        if both and name != "forwarding":
            bars.append(Bar(TITLES[name], Spread(both), ours=name == "msocks"))
    return bars


def _memory(rounds: Rounds) -> Iterator[str]:
    rows, total = [], None
    for name in rounds.contenders("memory"):
        if name == "forwarding":
            continue
        program, kernel = _slopes(rounds, name)
        both = [one + other for one, other in zip(program, kernel, strict=True)]
        sockets = [entry["per_session"]["sockets"] for entry in rounds.of("memory", name)]
        cells = [_spread(values, 2) for values in (program, kernel, both, sockets)]
        rows.append([rounds.title("memory", name), *cells])
        if name == "msocks" and both:
            total = statistics.median(both)
    targets = () if total is None else (4.0, 2.0)
    what = "KiB of MSOCKS per session"
    said = "\n".join(verdict(what, total or 0.0, target, at_most=True, digits=2) for target in targets)
    table = markdown_table(["", "program", "kernel", "both", "sockets each"], rows)
    counts = [level["sessions"] for entry in rounds.of("memory", "msocks") for level in entry["levels"]] or [0]
    yield _MEMORY.format(least=min(counts), most=max(counts), table=table, verdict=said).rstrip()
    maps = _maps_table(rounds.of("memory", "msocks"))
    if maps:
        yield _MAPS.format(table=maps).rstrip()


def _spread(values: list[float], digits: int) -> str:
    return cell(Spread(tuple(values)) if values else None, digits)


def _maps_table(entries: list[dict[str, Any]]) -> str:
    """The maps of the last round, at its lowest and at its highest level; nothing where there are none."""
    if not entries or not entries[-1]["levels"][-1]["maps"]:
        return ""
    low, high = entries[-1]["levels"][0], entries[-1]["levels"][-1]
    before = {found["name"]: found for found in low["maps"]}
    rows = []
    for found in high["maps"]:
        sizes = [f"{item['size'] / 1024:,.1f}" for item in (before.get(found["name"], found), found)]
        counted = "-" if found["entries"] is None else f"{found['entries']:,}"
        slot = f"{found['size'] / found['most_entries']:,.0f}" if found["entries"] is None else "-"
        rows.append([f"`{found['name']}`", f"{found['most_entries']:,}", *sizes, counted, slot])
    heading = ["", "can hold", f"at {low['sessions']:,}", f"at {high['sessions']:,}", "entries then", "bytes per slot"]
    return markdown_table(heading, rows)


def _counts_table(entry: dict[str, Any]) -> str:
    moments = [moment for moment in ("before", "during", "after") if moment in entry]
    rows = [[title, *(f"{entry[moment][key]:,}" for moment in moments)] for key, title in _COUNTS.items()]
    rows += [[title, *(f"{entry[moment][key] / 2**20:,.1f}" for moment in moments)] for key, title in _SIZES.items()]
    return markdown_table(["", *moments], rows)


def _forgotten(entry: dict[str, Any]) -> str:
    return "everything counted was where it had been." if entry["forgotten"] else "**not everything was gone**."


def _grown(entry: dict[str, Any]) -> str:
    left = (entry["after"]["program"] - entry["before"]["program"]) / entry["sessions"]
    return verdict("Bytes of the proxy's memory that each has left behind", left, _LEFT_BYTES, at_most=True, digits=1)


def _each(rounds: Rounds, entry: dict[str, Any]) -> str:
    """What one of many sessions takes, where the same number was also held by IP forwarding."""

    def grown(held: dict[str, Any], part: str) -> float:
        return float((held["during"][part] - held["before"][part]) / held["sessions"] / 1024)

    if "during" not in entry:
        return ""
    for direct in rounds.of("hold", "forwarding"):
        kernel = grown(entry, "kernel") - grown(direct, "kernel")
        program = grown(entry, "program")
        return f"Each took {program:.2f} KiB of the proxy and {kernel:.2f} KiB of the kernel, its two ends not counted."
    return ""


def sessions_sections(rounds: Rounds) -> Iterator[str]:
    """The sections about idle sessions that were measured."""
    if rounds.contenders("memory"):
        yield from _memory(rounds)
    for name, text in (("hold", _HOLD), ("churn", _CHURN)):
        for entry in rounds.of(name, "msocks"):
            known = {"each": _each(rounds, entry), "verdict": _forgotten(entry), "table": _counts_table(entry), **entry}
            known["grown"] = _grown(entry)
            known["per_s"] = entry["sessions"] / entry["seconds"] if "seconds" in entry else 0.0
            yield text.format(**known).rstrip()
    for name in ("memory", "hold", "churn"):
        yield from (f"A round failed. {text}" for text in rounds.failures(name))
