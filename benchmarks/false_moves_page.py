"""The part of the handoff page about moves that should not be, made of the raw results alone. Pure."""

from __future__ import annotations

from typing import Any

from benchmarks.publish import origin
from benchmarks.summary import markdown_table

_SECTION = """\
## False moves

{count} labs at the same time, {minutes:g} minutes each, whose links never go away but lose {loss:g} % of all packets in
each direction and delay every one by up to {jitters} more. One session each, whose bytes are all checked, on Wi-Fi from
the start; LTE is up. A move would be a false one. Moves are those that `msocks flows` counts; what crossed LTE, probes
and control channel, is the kernel's count.

{table}

{moves} false moves{verdict}.

{origin}
"""


def section(raw: dict[str, Any] | None) -> str:
    """The section; empty where it was not measured."""
    if raw is None:
        return ""
    rows = []
    for lab in raw["labs"]:
        lte = lab["crossed"]["lte"]
        rows.append([
            lab["traffic"],
            str(lab["moves"]),
            f"{sum(side['dropped_loss'] for each in lab['emulators'] for side in each.values()):,}",
            f"{lte['bytes_down'] / 1000:,.0f} / {lte['bytes_up'] / 1000:,.0f}",
            lab["error"] or "all right",
        ])  # fmt: skip
    moves = sum(lab["moves"] for lab in raw["labs"])
    heading = ["", "moves", "packets lost on purpose", "LTE down / up, kB", "bytes"]
    return _SECTION.format(
        count=len(raw["labs"]),
        minutes=raw["minutes"],
        loss=raw["links"][0]["loss_percent"],
        jitters=" and ".join(f"{link['jitter_ms']:g} ms ({link['name']})" for link in raw["links"]),
        table=markdown_table(heading, rows),
        moves=moves,
        verdict="; the target is 0, " + ("kept" if moves == 0 else "**not kept**"),
        origin=origin(raw, "data/handoff-false-moves.json"),
    )
