"""The tables of stalls, of what the server noticed, and of the links, made of the raw rounds. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.contenders import Contender, Msocks, PlainTcp
from benchmarks.handoff_cases import BOTH, CASES, MOBILE, Case, Figure
from benchmarks.server_side import between
from benchmarks.summary import LOST, Spread, Target, markdown_table, shown

AMOUNT_TARGET = Target(250)
"""Ms until 256 KiB of a download had arrived after Wi-Fi went down (median)."""

Found = dict[tuple[str, str, str], Spread]
"""Figures by event, direction and contender."""


def shown_ms(value: float | None) -> str:
    """A stall of a round; None is a transfer that was lost."""
    return shown(LOST if value is None else value)


def spreads(rounds: Iterable[dict[str, Any]], kind: str) -> Found:
    """The stalls in ms ("longest_ms", "resumed_ms" or "amount_ms") by figure, direction and contender."""
    values = defaultdict(list)
    for entry in rounds:
        for stall in entry["stalls"]:
            value = stall[kind]
            values[stall["figure"], entry["direction"], entry["contender"]].append(LOST if value is None else value)
    return {key: Spread(tuple(found)) for key, found in values.items()}


def figures() -> Iterator[tuple[Case, Figure]]:
    """All figures in the order of the page."""
    for case in CASES:
        for figure in case.figures:
            yield case, figure


def cell(spread: Spread | None) -> str:
    """*median / worst*."""
    return "-" if spread is None else f"{shown(spread.median)} / {shown(spread.most)}"


def yes(holds: bool) -> str:
    """Whether a target is kept."""
    return "yes" if holds else "**no**"


def stall_table(found: Found) -> str:
    """Every contender's longest gaps, what MSOCKS has to keep, and whether it does, and is ahead of all others."""
    contenders = _present(found)
    rows = []
    for figure, direction in _rows(found):
        ours = found.get((figure.name, direction, Msocks.name))
        target = figure.target(direction)
        peers = [found.get((figure.name, direction, kind.name)) for kind in MOBILE if kind is not Msocks]
        against = [peer.median for peer in peers if peer is not None]
        judged = ours is not None and target.median is not None
        rows.append([
            figure.title,
            direction,
            *(cell(found.get((figure.name, direction, kind.name))) for kind in contenders),
            "-" if target.median is None else f"{target.median:g}",
            yes(target.met(ours)) if judged and ours is not None else "-",
            yes(ours.median < min(against)) if ours is not None and against else "-",
        ])  # fmt: skip
    heading = ["", "", *(kind.title for kind in contenders), "target (median)", "kept", "ahead of all"]
    return markdown_table(heading, rows, text_columns=2)


def plain_table(found: Found) -> str:
    """Every contender's figures and nothing else."""
    contenders = _present(found)
    rows = [
        [figure.title, direction, *(cell(found.get((figure.name, direction, kind.name))) for kind in contenders)]
        for figure, direction in _rows(found)
    ]
    return markdown_table(["", "", *(kind.title for kind in contenders)], rows, text_columns=2)


def _present(found: Found) -> list[type[Contender]]:
    names = {contender for _, _, contender in found}
    known: tuple[type[Contender], ...] = (*MOBILE, PlainTcp)
    return [kind for kind in known if kind.name in names]


def _rows(found: Found) -> Iterator[tuple[Figure, str]]:
    for _, figure in figures():
        for direction in BOTH:
            if any(key[:2] == (figure.name, direction) for key in found):
                yield figure, direction


def amount_table(found: Found) -> str:
    """How long after Wi-Fi went down 256 KiB had come."""
    downs = {case.name for case in CASES if case.name.partition("-")[0] == "down"}
    chosen = {key: spread for key, spread in found.items() if key[0] in downs}
    contenders = _present(chosen)
    rows = []
    for figure, direction in _rows(chosen):
        ours = chosen.get((figure.name, direction, Msocks.name))
        cells = [cell(chosen.get((figure.name, direction, kind.name))) for kind in contenders]
        if ours is None or direction == "upload":
            rows.append([figure.title, direction, *cells, "-", "-"])
        else:
            rows.append([figure.title, direction, *cells, f"{AMOUNT_TARGET.median:g}", yes(AMOUNT_TARGET.met(ours))])
    heading = ["", "", *(kind.title for kind in contenders), "target (median)", "kept"]
    return markdown_table(heading, rows, text_columns=2)


def server_table(rounds: Iterable[dict[str, Any]]) -> str:
    """What the server of an MSOCKS session that downloads noticed of each event."""
    noticed: dict[str, list[dict[str, float]]] = defaultdict(list)
    for entry in rounds:
        if (entry["contender"], entry["direction"], entry["error"]) == (Msocks.name, "download", ""):
            for name, what in _noticed(entry):
                noticed[name].append(what)
    rows = []
    for case, figure in figures():
        found = noticed.get(figure.name)
        if found:
            rows.append([figure.title, *_server_cells(case, figure, found)])
    heading = [
        "", "rounds", "time-outs", "segments sent again", "window before", "no time-out, at most one window again",
        "smoothed RTT after, ms", "the path's, ms", "it is the path's",
        "rate after, Mbit/s",
    ]  # fmt: skip
    return markdown_table(heading, rows)


def _noticed(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    samples = entry["server"]
    for number, stall in enumerate(entry["stalls"]):
        before, after, end = samples[2 * number : 2 * number + 3]
        grown = between(before, end)
        yield (
            stall["figure"],
            {
                "timeouts": grown["TCPTimeouts"],
                "resent": grown["RetransSegs"],
                "window": before.get("window_segments", 0.0),
                "srtt": after.get("srtt_ms", LOST),
                "rate": stall["rate_mbit"],
            },
        )


def _server_cells(case: Case, figure: Figure, found: list[dict[str, float]]) -> list[str]:
    link = next(link for link in case.config.links if link.name == ("wifi" if figure.name.endswith("wifi") else "lte"))
    longest = link.rtt_ms + link.queue_ms
    resent = Spread(tuple(each["resent"] for each in found))
    srtt = Spread(tuple(each["srtt"] for each in found))
    rate = Spread(tuple(each["rate"] for each in found))
    timeouts = sum(each["timeouts"] for each in found)
    small = all(each["resent"] <= each["window"] for each in found)
    return [
        str(len(found)),
        f"{timeouts:.0f}",
        cell(resent),
        cell(Spread(tuple(each["window"] for each in found))),
        yes(timeouts == 0 and small),
        cell(srtt),
        f"{link.rtt_ms:g} to {longest:g}",
        yes(srtt.most <= longest),
        f"{shown(rate.median, 1)} / {shown(rate.least, 1)} of {link.rate_mbit:g}",
    ]


def link_table(raw: dict[str, Any]) -> str:
    """What the emulated links were set to, and what they do."""
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
