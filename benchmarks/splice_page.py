"""The page and the plots of `make bench-splice`, made of the raw rounds alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.bars import Bar, Group, svg
from benchmarks.publish import origin
from benchmarks.splice_rounds import TITLES, Figure, Rounds, cell, verdict
from benchmarks.splice_sessions_page import memory_bars, sessions_sections
from benchmarks.summary import Spread, markdown_table

_PAGE = """\
# The splice

What the packets of a spliced session cost, beside those that the kernel of the same host forwards, and beside other
proxies on that host. The hosts are network namespaces of one machine, joined by veth pairs that nothing slows down:
mobile, proxy, server, in a line. IP forwarding crosses the same two interfaces of the host in the middle as the proxied
connections do, with nothing of a proxy there. {rounds} rounds; in each, every measurement has hosts of its own, on
which the contenders take turns in random order (seed {seed}). MSOCKS runs with `--datapath {datapath}`. Cells are
*median (least - most)*; ratios are medians of the rounds' ratios, with the bootstrap interval of 95 %.

{sections}

## Origin

{origin}
"""

_LATENCY = """\
## Round trip of one byte

One byte there, one byte back, one at a time, {seconds:g} s each, over a connection that stands. Client, server and
everything in between run on one processor, so that it never halts: the time to wake a halted virtual processor is many
times what is measured. *IP forwarding beside MSOCKS* is what the hooks of MSOCKS cost packets that are not its own.

![Mean round trip](splice-latency.svg)

{tables}

{verdicts}

{programs}
"""
_PROGRAMS = """\
Of a round trip through MSOCKS its BPF programs take what this table says, by the kernel's own count of another
{seconds:g} s (BPF_ENABLE_STATS). The rest is the sockets and the TCP of the two ends, and four crossings of veth pairs,
which a router costs too.

{table}
"""
_THROUGHPUT = """\
## Throughput

One flow and eight, {seconds:g} s each way, payload in Gbit/s; and the processor seconds that the whole machine spends
on each GB, both ends included. haproxy moves bytes by splice(2) (`option splice-request`, `option splice-response`).

![Throughput](splice-throughput.svg)

{tables}

{verdicts}
"""
_RATE = """\
## Connections per second

SOCKS CONNECT, one byte there and back, close (by the server, so that TIME-WAIT is at its end and never takes a proxy's
ports); 32 at a time, for {seconds:g} s, between 64 addresses of each end. The time of a connection is from connect(2)
to the byte's return. *Proxy* is processor time of the proxy's processes for each connection, *machine* that of
everything.

![Connections per second](splice-rate.svg)

{tables}

{verdicts}
"""
_CASES = ("down-1", "up-1", "down-8", "up-8")
_CASE_TITLES = ("1 flow down", "1 flow up", "8 flows down", "8 flows up")


def _nested(outer: str, inner: str) -> Figure:
    return lambda entry: float(entry[outer][inner])


def _plain(name: str, factor: float = 1.0) -> Figure:
    return lambda entry: float(entry[name]) * factor


def _ratio(rounds: Rounds, measurement: str, ours: str, theirs: str, figure: Figure) -> str:
    if ours == theirs:
        return "1"
    found = rounds.ratio(measurement, ours, theirs, figure)
    return str(found) if found else "-"


def _latency_table(rounds: Rounds, family: str) -> str:
    rows = []
    for name in rounds.contenders("latency"):
        figures = [_nested(family, key) for key in ("mean_us", "median_us", "p99_us")]
        cells = [cell(rounds.spread("latency", name, figure), 2) for figure in figures]
        ratios = [_ratio(rounds, "latency", name, "forwarding", figure) for figure in figures[:2]]
        rows.append([rounds.title("latency", name), *cells, *ratios])
    heading = [family.replace("ipv", "IPv"), "mean, us", "median, us", "p99, us", "ratio of means", "ratio of medians"]
    return markdown_table(heading, rows)


def _latency_verdicts(rounds: Rounds) -> Iterator[str]:
    for family in ("ipv4", "ipv6"):
        for key in ("mean", "median"):
            ratio = rounds.ratio("latency", "msocks", "forwarding", _nested(family, f"{key}_us"))
            if ratio:
                what = f"MSOCKS over IP forwarding, {family.replace('ipv', 'IPv')}, {key}"
                yield verdict(what, ratio.median, 1.0, at_most=True)
                yield verdict(f"{what}, upper end of the interval", ratio.high, 1.05, at_most=True)


def _programs(rounds: Rounds, seconds: float) -> str:
    """What of the round trip is the programs'; nothing where that was not measured."""
    rows = []
    for family in ("ipv4", "ipv6"):
        whole = rounds.spread("latency", "msocks", _nested(family, "mean_us"))
        taken = rounds.of("programs", "msocks")
        for name in dict.fromkeys(name for entry in taken for name in entry[family]):
            found = [entry[family][name] for entry in taken if name in entry[family]]
            runs, ns = (Spread(tuple(each[key] for each in found)) for key in ("runs", "ns"))
            share = f"{runs.median * ns.median / whole.median / 10:.1f}" if whole else "-"
            rows.append([f"{family.replace('ipv', 'IPv')}, `{name}`", cell(runs, 2), cell(ns, 0), share])
    if not rows:
        return ""
    table = markdown_table(["", "runs in a round trip", "ns each", "% of the round trip"], rows)
    return _PROGRAMS.format(seconds=seconds, table=table)


def _throughput_table(rounds: Rounds, key: str, what: str) -> str:
    rows = []
    for name in rounds.contenders("throughput"):
        cells = [cell(rounds.spread("throughput", name, _nested(case, key)), 2) for case in _CASES]
        rows.append([rounds.title("throughput", name), *cells])
        if name != "forwarding":
            ratios = [_ratio(rounds, "throughput", name, "forwarding", _nested(case, key)) for case in _CASES]
            rows.append(["... over IP forwarding", *ratios])
    return markdown_table([what, *_CASE_TITLES], rows)


def _throughput_verdicts(rounds: Rounds) -> Iterator[str]:
    for case, title in zip(_CASES, _CASE_TITLES, strict=True):
        for theirs, target in (("forwarding", 0.95), ("haproxy", 1.0), ("dante", 1.0)):
            ratio = rounds.ratio("throughput", "msocks", theirs, _nested(case, "gbit_per_s"))
            if ratio:
                yield verdict(f"{title}, Gbit/s of MSOCKS over {TITLES[theirs]}", ratio.median, target)
        ratio = rounds.ratio("throughput", "msocks", "forwarding", _nested(case, "machine_s_per_gb"))
        if ratio:
            yield verdict(f"{title}, processor time of MSOCKS over IP forwarding", ratio.median, 1.05, at_most=True)
    grown = rounds.spread("throughput", "msocks", lambda entry: float(entry["grown"]) / 2**20)
    passed = rounds.spread("throughput", "msocks", lambda entry: float(entry["passed"]) * 1e-9)
    if grown and passed:
        what = f"MiB that the proxy's memory grew by while {passed.median:,.0f} GB passed"
        yield verdict(what, grown.median, 1.0, at_most=True, digits=2)


def _rate_table(rounds: Rounds) -> str:
    rows = []
    for name in rounds.contenders("rate"):
        figures = [
            (_plain("per_s"), 0),
            (_plain("p99_us", 1e-3), 2),
            (_plain("proxy_us"), 0),
            (_plain("machine_us"), 0),
        ]
        cells = [cell(rounds.spread("rate", name, figure), digits) for figure, digits in figures]
        peers = ("dante", "microsocks")
        ratios = [_ratio(rounds, "rate", name, peer, _plain(key)) for key in ("per_s", "p99_us") for peer in peers]
        rows.append([rounds.title("rate", name), *cells, *ratios])
    heading = ["", "connections/s", "p99, ms", "proxy, us each", "machine, us each", "x dante", "x microsocks"]
    heading += ["p99 x dante", "p99 x microsocks"]
    return markdown_table(heading, rows)


def _rate_verdicts(rounds: Rounds) -> Iterator[str]:
    for theirs, target in (("dante", 1.5), ("dante", 2.2), ("microsocks", 1.15)):
        ratio = rounds.ratio("rate", "msocks", theirs, _plain("per_s"))
        if ratio:
            yield verdict(f"Connections/s of MSOCKS over {theirs}", ratio.median, target, digits=2)


def _sections(raw: dict[str, Any]) -> Iterator[str]:
    rounds, durations = Rounds(raw["rounds"]), raw["durations"]
    parts = {
        "latency": (_LATENCY, durations["latency"], [_latency_table(rounds, f) for f in ("ipv4", "ipv6")],
                    _latency_verdicts(rounds)),
        "throughput": (_THROUGHPUT, durations["bulk"], [_throughput_table(rounds, "gbit_per_s", "Gbit/s"),
                       _throughput_table(rounds, "machine_s_per_gb", "s/GB")], _throughput_verdicts(rounds)),
        "rate": (_RATE, durations["rate"], [_rate_table(rounds)], _rate_verdicts(rounds)),
    }  # fmt: skip
    for name, (text, seconds, tables, verdicts) in parts.items():
        if rounds.contenders(name):
            known = {"tables": "\n\n".join(tables), "verdicts": "\n".join(verdicts)}
            yield text.format(seconds=seconds, programs=_programs(rounds, seconds), **known).rstrip()
            measured = ("latency", "programs") if name == "latency" else (name,)
            yield from (f"A round failed. {text}" for each in measured for text in rounds.failures(each))
    yield from sessions_sections(rounds)


def page(raw: dict[str, Any]) -> str:
    """The page; parts that were not measured are not in it. Raises KeyError for raw data of another schema."""
    return _PAGE.format(
        rounds=max(entry["round"] for entry in raw["rounds"]),
        seed=raw["seed"],
        datapath=raw["datapath"],
        sections="\n\n".join(_sections(raw)),
        origin=origin(raw, "data/splice.json"),
    )


def _group(rounds: Rounds, measurement: str, title: str, figure: Figure) -> Group:
    bars = []
    for name in rounds.contenders(measurement):
        spread = rounds.spread(measurement, name, figure)
        if spread:
            bars.append(Bar(TITLES[name], spread, ours=name == "msocks"))
    return Group(title, bars)


def plots(raw: dict[str, Any]) -> dict[str, str]:
    """The drawings that the page shows, by file name."""
    rounds = Rounds(raw["rounds"])
    latency = [_group(rounds, "latency", f.replace("ipv", "IPv"), _nested(f, "mean_us")) for f in ("ipv4", "ipv6")]
    bulk = [
        _group(rounds, "throughput", title, _nested(case, "gbit_per_s"))
        for case, title in zip(_CASES, _CASE_TITLES, strict=True)
    ]
    rate = [_group(rounds, "rate", "32 at a time", _plain("per_s"))]
    memory = [Group("program and kernel", memory_bars(rounds))]
    drawings = {
        "splice-latency.svg": (latency, "Mean round trip of one byte", "us", 2),
        "splice-throughput.svg": (bulk, "Throughput", "Gbit/s", 1),
        "splice-rate.svg": (rate, "Connections through the middle", "per second", 0),
        "splice-memory.svg": (memory, "Memory of an idle session in the middle", "KiB", 1),
    }
    drawn = {}
    for name, (groups, title, unit, digits) in drawings.items():
        if any(group.bars for group in groups):
            drawn[name] = svg(title, unit, groups, digits=digits)
    return drawn
