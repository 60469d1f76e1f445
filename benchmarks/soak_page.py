"""The page of `make soak`, made of the raw results alone."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.publish import origin
from benchmarks.summary import markdown_table
from benchmarks.volume import FLAT_BYTES

_PAGE = """\
# {title}

{verdict}

## Many moves

Sessions through agent and proxy that download, upload, or do both, as fast as Wi-Fi (50 Mbit/s, 5 ms) and LTE
(20 Mbit/s, 50 ms) let them together; one that ends is followed by another. Meanwhile one thing after the other happens,
at random. Each session that gets another leg counts as one session-move. Where the proxy is killed
(SIGKILL), that is in the middle of what happens, and the next one starts up to 1.5 s later. Every byte is checked, and
the server has to accept one connection for each session.

{storms}

What happened:

{causes}

{memory}## Origin

Seed {seed}.

{origin}
"""

_MEMORY = """\
## Much data, flat memory

One session, both directions at once, `msocks move` about every second; resident set of agent and proxy, sampled ten
times a second. *Growth* is from the second tenth of the run to its last, by their medians; up to {flat:.0f} MB of it is
what an allocator keeps or gives back.

{volumes}

"""


def _storm_table(storms: list[dict[str, Any]]) -> str:
    heading = [
        "seed",
        "session-moves",
        "sessions",
        "at a time, at least",
        "lost",
        "connections at the server",
        "datapath",
        "proxy killed",
        "s",
    ]
    rows = []
    for storm in storms:
        figures = [
            storm["seed"],
            storm["session_moves"],
            len(storm["sessions"]),
            storm["fewest_concurrent"],
            storm["sessions_lost"],
            storm["server_connections"],
            storm["datapath"],
            storm["crashes"],
            storm["seconds"],
        ]
        rows.append([str(figure) for figure in figures])
    return markdown_table(heading, rows)


def _cause_table(storms: list[dict[str, Any]]) -> str:
    totals: dict[str, int] = {}
    for storm in storms:
        for cause, count in storm["causes"].items():
            totals[cause] = totals.get(cause, 0) + count
    return markdown_table(["", "times"], [[cause, str(count)] for cause, count in sorted(totals.items())])


def _volume_table(volumes: list[dict[str, Any]]) -> str:
    rows = []
    for volume in volumes:
        for program, samples in volume["resident_bytes"].items():
            limit = f"{volume['rate_limit'] / 1e6:g} MB/s" if volume["rate_limit"] else "-"
            rows.append([
                program,
                f"{volume['bytes_each_way'] / 1e9:g}",
                limit,
                str(volume["moves"]),
                f"{statistics.median(samples) / 1e6:.1f}",
                f"{max(samples) / 1e6:.1f}",
                f"{volume['growth_bytes'][program] / 1e6:+.2f}",
            ])  # fmt: skip
    heading = ["", "GB each way", "rate limit", "moves", "median, MB", "most, MB", "growth, MB"]
    return markdown_table(heading, rows)


def _memory(volumes: list[dict[str, Any]]) -> str:
    """Nothing where it was not looked at."""
    return _MEMORY.format(volumes=_volume_table(volumes), flat=FLAT_BYTES / 1e6) if volumes else ""


def page(raw: dict[str, Any], name: str = "soak") -> str:
    """The page NAME.md. Raises KeyError for raw data of another schema."""
    problems = [f"- **Failed**: {problem}." for problem in raw["problems"]]
    good = "Every byte was right, no session was lost" + (", and memory stayed flat." if raw["volumes"] else ".")
    return _PAGE.format(
        title="Long runs" if raw["volumes"] else "Moves and crashes",
        verdict="\n".join(problems) or good,
        storms=_storm_table(raw["storms"]),
        causes=_cause_table(raw["storms"]),
        memory=_memory(raw["volumes"]),
        seed=raw["seed"],
        origin=origin(raw, f"data/{name}.json"),
    )
