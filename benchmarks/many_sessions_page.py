"""The part of the handoff page about a thousand sessions, made of the raw rounds alone. Pure."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.publish import origin
from benchmarks.summary import LOST, Spread, markdown_table, shown

_TITLES = {"carrier": "Wi-Fi goes down", "silent": "Wi-Fi goes silent"}
_SECTION = """\
## {sessions:,} sessions when their link dies

{sessions:,} sessions through agent and proxy, spliced; each sends a message of 16 bytes every {period:g} s and gets it
back, and every byte is checked. Seconds from the event until a session's bytes came again: the session in the middle,
and the last one (*median / worst* of {rounds} rounds). With so small a message now and then, a session that has
nothing under way shows that it runs with its next one. *Lost* counts sessions that ended or missed a byte. Processor
seconds are those of the programs from the event until the last session ran; *before* is their share of one processor
in the seconds before it.

{table}

{failures}{origin}
"""


def section(raw: dict[str, Any] | None) -> str:
    """The section; empty where it was not measured."""
    if raw is None:
        return ""
    rows = []
    for event, title in _TITLES.items():
        good = [entry for entry in raw["rounds"] if entry["event"] == event and not entry["error"]]
        if good:
            rows.append([title, *_cells(good)])
    heading = [
        "", "median session, s", "all run again, s", "lost", "proxy, CPU s", "agent, CPU s", "proxy before",
        "agent before",
    ]  # fmt: skip
    failures = [f"- **Failed**: {_TITLES[each['event']]}: {each['error']}." for each in raw["rounds"] if each["error"]]
    return _SECTION.format(
        sessions=raw["sessions"],
        period=raw["period_s"],
        rounds=max(entry["round"] for entry in raw["rounds"]),
        table=markdown_table(heading, rows),
        failures="\n".join([*failures, "", ""]) if failures else "",
        origin=origin(raw, "data/handoff-many.json"),
    )


def _cells(entries: list[dict[str, Any]]) -> list[str]:
    times = [[LOST if each is None else each for each in entry["resumed_s"]] for entry in entries]
    lost = sum(len(entry["problems"]) for entry in entries)
    used = {name: Spread(tuple(entry["processor_s"][name] for entry in entries)) for name in ("proxy", "agent")}
    before = {name: max(entry["steady_share"][name] for entry in entries) for name in used}
    return [
        _pair(Spread(tuple(statistics.median(each) for each in times))),
        _pair(Spread(tuple(max(each) for each in times))),
        str(lost),
        *(_pair(spread) for spread in used.values()),
        *(f"{share:.0%}" for share in before.values()),
    ]


def _pair(spread: Spread) -> str:
    return f"{shown(spread.median, 2)} / {shown(spread.most, 2)}"
