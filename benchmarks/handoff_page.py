"""The page of `make bench-handoff`, made of the raw rounds alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks.contenders import MOBILE, Contender, Msocks, PlainTcp
from benchmarks.handoff_cases import CASES
from benchmarks.publish import origin
from benchmarks.stalls import WATCHED_S
from benchmarks.summary import LOST, Spread, Target, markdown_table, shown

_PAGE = """\
# Stalls at a move

How long a transfer stalls when its network changes. A stall is the longest gap between two arrivals of bytes at the
receiver, in ms, from the event to the end of the transfer (to the next move, where there is one), which is at least
{watched} s later. One connection, as fast as it can go, from the lab's server to the mobile node (download) or the
other way (upload); every byte is checked. Where there is no link for a while, the figure is the excess: what comes
after the instant at which the new link has carrier, address and route.

Each cell is *median / worst* of {rounds} rounds, in which all cases, directions and contenders take turns in random
order (seed {seed}), each in a lab of its own. A round whose transfer did not end well counts as `lost`, which is
longer than any stall.

{longest}

*Target* is what MSOCKS has to keep; *kept* says whether it does.

The gaps of the first table may come some time after the event. A TCP connection fills the queue of its link (100 ms)
and then loses packets there: that is the row where nothing happens. For the first ten seconds on a new link MSOCKS
paces what it sends, so that this does not happen (*Architecture*, "The first seconds on a new link"); later on, and on
a first link, its legs are like any other connection. This is how long it took until bytes flowed again:

{resumed}

## Contenders

- **MSOCKS**: an ordinary SOCKS5 client, `msocks agent` on the mobile node, `msocks proxy`, an ordinary server. The
  server accepted exactly one connection in every round that is not `lost`. `msocks move` is timed from the start
  of the command.
- **TCP**: a connection that has LTE alone from its beginning, and nothing happens to it.
- **MPTCP**: `mptcpize run` on client and server, no proxy. A network manager on the mobile node
  (`benchmarks/mptcp_manager.py`) follows the kernel's link events, as NetworkManager does, and keeps one endpoint
  for each link that is up: LTE with the flag `backup`, or two equal subflows. The server's counters show in
  every round that MPTCP was spoken and a second subflow opened.

All use cubic, and no host remembers metrics of earlier connections.

## The links

{links}

## Origin

{origin}
"""


def shown_ms(value: float | None) -> str:
    """A stall of a round; None is a transfer that was lost."""
    return shown(LOST if value is None else value)


def spreads(rounds: list[dict[str, Any]], kind: str) -> dict[tuple[str, str, str], Spread]:
    """The stalls in ms ("longest_ms" or "resumed_ms") by figure, direction and contender."""
    values = defaultdict(list)
    for entry in rounds:
        for stall in entry["stalls"]:
            value = stall[kind]
            values[stall["figure"], entry["direction"], entry["contender"]].append(LOST if value is None else value)
    return {key: Spread(tuple(found)) for key, found in values.items()}


def _figures() -> Iterator[tuple[str, str, Target]]:
    for case in CASES:
        for figure, (title, target) in case.figures.items():
            yield figure, title, target


def _cell(spread: Spread | None) -> str:
    return "-" if spread is None else f"{shown(spread.median)} / {shown(spread.most)}"


def _stall_table(found: dict[tuple[str, str, str], Spread], *, judged: bool) -> str:
    present = {contender for _, _, contender in found}
    known: tuple[type[Contender], ...] = (*MOBILE, PlainTcp)
    contenders = [contender for contender in known if contender.name in present]
    rows = []
    for figure, title, target in _figures():
        for direction in ("download", "upload"):
            spread = found.get((figure, direction, Msocks.name))
            cells = [_cell(found.get((figure, direction, contender.name))) for contender in contenders]
            if judged:
                kept = "-" if spread is None else "yes" if target.met(spread) else "**no**"
                cells += [str(target), kept]
            if any((figure, direction, contender) in found for contender in present):
                rows.append([title, direction, *cells])
    heading = ["", "", *(contender.title for contender in contenders), *(("target", "kept") if judged else ())]
    return markdown_table(heading, rows, text_columns=2)


def _link_table(raw: dict[str, Any]) -> str:
    rows = []
    for link, measured in zip(raw["lab"]["links"], raw["links"], strict=True):
        rows.append([
            link["name"],
            f"{link['rtt_ms']:g}",
            f"{measured['rtt_median_ms']:.1f} ({measured['rtt_min_ms']:.1f} to {measured['rtt_max_ms']:.1f})",
            f"{link['rate_mbit']:g}",
            f"{measured['down_mbit']:.1f} / {measured['up_mbit']:.1f}",
            f"{link['queue_ms']:g}",
        ])  # fmt: skip
    heading = ["", "RTT set, ms", "RTT measured, ms", "rate set, Mbit/s", "measured down / up, Mbit/s", "queue, ms"]
    return markdown_table(heading, rows)


def page(raw: dict[str, Any]) -> str:
    """The page. Raises KeyError for raw data of another schema."""
    return _PAGE.format(
        watched=WATCHED_S,
        rounds=max(entry["round"] for entry in raw["rounds"]),
        seed=raw["seed"],
        longest=_stall_table(spreads(raw["rounds"], "longest_ms"), judged=True),
        resumed=_stall_table(spreads(raw["rounds"], "resumed_ms"), judged=False),
        links=_link_table(raw),
        origin=origin(raw, "data/handoff.json"),
    )
