"""The page and the plot of `make bench-agent`, made of the raw rounds alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.agent_field import GIGABIT, SPEEDS, Speed
from benchmarks.agent_measurements import DIRECTIONS
from benchmarks.agent_once_page import flows_section, profile_section
from benchmarks.agent_ways import AGENT, OURS, RUN, SPLICE, STAND_IN, WAYS, Way
from benchmarks.bars import Bar, Group, svg
from benchmarks.publish import origin
from benchmarks.splice_rounds import Figure, Rounds, cell, verdict
from benchmarks.summary import Spread, markdown_table

_PAGE = """\
# The agent

What it costs to come to the splice by the library, through the agent, or under `msocks run`, beside a plain SOCKS5
client of the same proxy. The network is made of namespaces of one machine: mobile, access router, core, proxy and
server. {rounds} rounds; in each, every speed of the mobile's link has a network of its own, in which all ways take
turns in random order (seed {seed}). Every way ends in a session that the proxy splices; that is looked at while the
bytes flow. Cells are *median (least - most)*; ratios are medians of the rounds' ratios, with the bootstrap interval of
95 %.

- *The splice alone*: a client speaks SOCKS5 with the proxy, and its connection is spliced. All ratios are over
  this, unless another is named.
- *The agent*: the same client, and the agent on its host as its SOCKS5 server.
- *`msocks run`*: the same client, with nothing configured in it; the kernel's hooks bring it to the agent.
- *Library, blocking socket*: the same client connects with `msocks.create_connection`, whose socket is one end of a
  pair: a thread of the program moves the bytes.
- *Streams* are those of asyncio, with an event loop in place of the blocking socket. So there are two: over the splice
  alone by `asyncio.open_connection`, and by the library's `msocks.open_connection`, which has no other hop.
- *splice(2) for the agent*: haproxy with one thread hands the bytes on to the proxy inside the kernel. It
  has no sessions that move; it shows what a kernel path in the agent could be.

{sections}

## Origin

{origin}
"""
_SPEED = """\
## Link: {title}

{rates}

The round trip of one byte over a connection that stands ({seconds:g} s), and connecting: from the client's first system
call to the return of a first byte, which takes several round trips. Client, server and everything in between are on one
processor for this, so that it never halts. *Added* are the rounds' differences from the splice alone with the same
client.

{latencies}
"""
_ABOUT_GIGABIT = """\
Each direction carries 1 Gbit/s of Ethernet frames, which are 0.956 Gbit/s of payload where each has 1,448 bytes of
it; 10 ms of data may wait in front (tc-tbf). One connection, {amount:,.0f} MB each way, of which the first tenth does
not count."""
_ABOUT_UNLIMITED = """\
Nothing slows the link down: the processors are the limit, and client, agent, proxy and server share them. One
connection, {amount:,.0f} MB each way, of which the first tenth does not count.

![Throughput](agent-throughput.svg)"""
_PROCESSOR = """\
Processor seconds for each GB (10^9 bytes): of the *machine*, both ends and all hosts in between included; of the
*client*, from its request to its end; and of the program *between* them on the mobile host, the agent or its stand-in,
in user space and in the kernel. What a packet costs on the next hosts is spent on the time of whoever sends it over
veth, and so it is in these figures, too.

{tables}
"""


def _rate(direction: str) -> Figure:
    return lambda entry: float(entry[direction]["gbit_per_s"])


def _latency(name: str) -> Figure:
    return lambda entry: float(entry["latency"][name])


def _cost(direction: str, name: str) -> Figure:
    return lambda entry: float(entry[direction][f"{name}_s_per_gb"])


def _program(direction: str, program: str, space: str) -> Figure:
    return lambda entry: float(entry[direction][program][f"{space}_s_per_gb"])


def between(way: Way) -> str | None:
    """The program that hands the bytes on, on the mobile host."""
    return {AGENT: "agent", RUN: "agent", STAND_IN: "stand-in"}.get(way)


def _present(rounds: Rounds, speed: Speed) -> list[Way]:
    names = rounds.contenders(speed.name)
    return [way for way in WAYS if way.name in names]


def _rate_table(rounds: Rounds, speed: Speed) -> str:
    rows, digits = [], 3 if speed is GIGABIT else 2
    for way in _present(rounds, speed):
        cells = [cell(rounds.spread(speed.name, way.name, _rate(direction)), digits) for direction in DIRECTIONS]
        rows.append([rounds.title(speed.name, way.name), *cells, *_rate_ratios(rounds, speed, way, SPLICE.name)])
        if way.base not in (way.name, SPLICE.name):
            base = next(each.title for each in WAYS if each.name == way.base)
            rows.append([f"... over {base}", "", "", *_rate_ratios(rounds, speed, way, way.base)])
    return markdown_table(["", "down, Gbit/s", "up, Gbit/s", "down, ratio", "up, ratio"], rows)


def _rate_ratios(rounds: Rounds, speed: Speed, way: Way, base: str) -> list[str]:
    found = [rounds.ratio(speed.name, way.name, base, _rate(direction)) for direction in DIRECTIONS]
    return ["1" if way.name == base else str(ratio) if ratio else "-" for ratio in found]


def _rate_verdicts(rounds: Rounds, speed: Speed) -> Iterator[str]:
    if speed is not GIGABIT:
        return
    for way in OURS:
        for direction in DIRECTIONS:
            ratio = rounds.ratio(speed.name, way.name, SPLICE.name, _rate(direction))
            if ratio:
                yield verdict(f"{way.title}, {direction}, over the splice alone", ratio.median, 0.95)


def added(rounds: Rounds, speed: Speed, way: Way, figure: Figure) -> Spread | None:
    """By how much a figure is above that of the same client over the splice alone, in the same round."""
    mine, base = (
        {entry["round"]: figure(entry) for entry in rounds.of(speed.name, name)} for name in (way.name, way.base)
    )
    both = sorted(mine.keys() & base.keys())
    return Spread(tuple(mine[number] - base[number] for number in both)) if both else None


def _latency_table(rounds: Rounds, speed: Speed) -> str:
    rows = []
    for way in _present(rounds, speed):
        cells = []
        for name, digits in (("median_us", 1), ("p99_us", 1), ("connect_ms", 2)):
            figure = _latency(name)
            cells.append(cell(rounds.spread(speed.name, way.name, figure), digits))
            if name != "p99_us":
                cells.append("-" if way.name == way.base else cell(added(rounds, speed, way, figure), digits))
        rows.append([rounds.title(speed.name, way.name), *cells])
    return markdown_table(["", "round trip, us", "added, us", "p99, us", "connecting, ms", "added, ms"], rows)


def _processor_table(rounds: Rounds, speed: Speed, direction: str) -> str:
    rows = []
    for way in _present(rounds, speed):
        figures = [_cost(direction, "machine"), _cost(direction, "client")]
        cells = [cell(rounds.spread(speed.name, way.name, figure), 2) for figure in figures]
        program = between(way)
        for space in ("user", "system"):
            figure = _program(direction, program, space) if program else None
            cells.append(cell(rounds.spread(speed.name, way.name, figure), 2) if figure else "-")
        rows.append([rounds.title(speed.name, way.name), *cells])
    return markdown_table([f"{direction}, s/GB", "machine", "client", "between, user", "between, kernel"], rows)


def _speed_section(rounds: Rounds, speed: Speed, amounts: dict[str, Any]) -> str:
    about = (_ABOUT_GIGABIT if speed is GIGABIT else _ABOUT_UNLIMITED).format(amount=amounts[speed.name] * 1e-6)
    rates = [about, _rate_table(rounds, speed), "\n".join(_rate_verdicts(rounds, speed))]
    text = _SPEED.format(
        title=speed.title,
        rates="\n\n".join(filter(None, rates)),
        seconds=amounts["round_trips_s"],
        latencies=_latency_table(rounds, speed),
    )
    if speed is not GIGABIT:
        tables = "\n\n".join(_processor_table(rounds, speed, direction) for direction in DIRECTIONS)
        text += "\n" + _PROCESSOR.format(tables=tables)
    failures = [f"\nA round failed. {said}\n" for said in rounds.failures(speed.name)]
    return "".join([text, *failures]).rstrip()


def _medians(rounds: Rounds, measurement: str) -> Callable[[str, Figure], float | None]:
    def median(way: str, figure: Figure) -> float | None:
        spread = rounds.spread(measurement, way, figure)
        return spread.median if spread else None

    return median


def _sections(raw: dict[str, Any]) -> Iterator[str]:
    rounds = _rounds(raw)
    for speed in SPEEDS:
        if rounds.contenders(speed.name):
            yield _speed_section(rounds, speed, raw["amounts"])
    if "profile" in raw:
        yield profile_section(raw["profile"], _medians(rounds, "unlimited"))
    if "flows" in raw:
        yield flows_section(raw["flows"])


def _rounds(raw: dict[str, Any]) -> Rounds:
    return Rounds(raw["rounds"], {way.name: way.title for way in WAYS})


def page(raw: dict[str, Any]) -> str:
    """The page; parts that were not measured are not in it. Raises KeyError for raw data of another schema."""
    return _PAGE.format(
        rounds=max((entry["round"] for entry in raw["rounds"]), default=0),
        seed=raw["seed"],
        sections="\n\n".join(_sections(raw)),
        origin=origin(raw, "data/agent.json"),
    )


def plots(raw: dict[str, Any]) -> dict[str, str]:
    """The drawing that the page shows, by file name."""
    rounds, groups = _rounds(raw), []
    for direction in DIRECTIONS:
        bars = []
        for way in WAYS:
            spread = rounds.spread("unlimited", way.name, _rate(direction))
            if spread:
                bars.append(Bar(way.title.replace("`", ""), spread, ours=way in OURS))
        groups.append(Group(direction, bars))
    if not any(group.bars for group in groups):
        return {}
    return {"agent-throughput.svg": svg("Throughput over an unlimited link", "Gbit/s", groups)}
