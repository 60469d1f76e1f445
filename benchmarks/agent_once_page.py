"""What the page of `make bench-agent` says of what is measured once: the agent's profile, and its memory."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.agent_measurements import DIRECTIONS
from benchmarks.agent_profile import place_shares
from benchmarks.agent_ways import AGENT, SPLICE, STAND_IN
from benchmarks.splice_rounds import Figure, verdict
from benchmarks.summary import markdown_table
from benchmarks.volume import FLAT_BYTES

Median = Callable[[str, Figure], float | None]
"""Of a way's figure over all rounds at unlimited speed."""

_PLACES = {
    "user": "user space",
    "copy": "kernel: copying between kernel and user space",
    "kernel": "kernel: all else (TCP, IP, veth, system calls)",
}
_TOP = 12
_MANY_CALLS = 100  # for each GB; rarer ones are not shown

_PROFILE = """\
## What a kernel path in the agent would gain

Where the agent is while one connection carries bulk data over the unlimited link, by samples that perf(1) takes with a
timer (`cpu-clock`).

{places}

The most frequent functions:

{symbols}

System calls for each GB:

{calls}

{gains}
"""
_GAIN = (
    "- {direction}: through the agent the machine spends {agent:.2f} s on a GB, over the splice alone {splice:.2f} s"
    "{most}. The agent's own processor time is {own:.2f} s/GB, of which user space and copying are {avoidable:.0%}. A "
    "kernel path (sockmap or splice(2)) would do without both: {saved:.2f} s/GB, which is {saved_share:.0%} of what "
    "the machine spends. The work of two TCP connections remains in any case."
)
_MOST = ": nothing in the agent's place could save more than {:.0%}"
_STAND_IN = (
    " As measured, splice(2) for the agent makes it {used:.2f} s/GB, a change of {change:+.0%}, and carries "
    "{ratio:.2f} times as many bytes a second as the agent."
)
_WIDTH = 116
_FLOWS = """\
## {flows:,} flows at once

All through one agent over the unlimited link, spliced at the proxy. In a pass each flow carries {amount:,.0f} kB each
way, in blocks of 16 KiB that an echo server sends back, all flows at the same time; every byte is compared. *Agent* is
the memory of its process (PSS), *kernel* that of the whole machine's kernel, the sockets of all hosts included. Both
are looked at when everything has arrived.

{table}

{verdicts}
"""


def profile_section(profile: dict[str, Any], median: Median) -> str:
    """The profile, and what follows from it with the medians of the rounds, if there are any."""
    if profile["error"]:
        return f"## What a kernel path in the agent would gain\n\n**Failed**: {profile['error'].strip()}"
    return _PROFILE.format(
        places=_place_table(profile),
        symbols=_symbol_table(profile),
        calls=_call_table(profile),
        gains="\n".join(_gains(profile, median)),
    ).rstrip()


def _place_table(profile: dict[str, Any]) -> str:
    shares = [place_shares(profile[direction]["symbols"]) for direction in DIRECTIONS]
    rows = [[title, *(f"{each[place]:.1%}" for each in shares)] for place, title in _PLACES.items()]
    return markdown_table(["", *DIRECTIONS], rows)


def _symbol_table(profile: dict[str, Any]) -> str:
    columns = []
    for direction in DIRECTIONS:
        named = [entry for entry in profile[direction]["symbols"] if entry["symbol"]][:_TOP]
        columns.append([(f"`{each['symbol']}` ({each['place']})", f"{each['share']:.1%}") for each in named])
    for column in columns:
        column += [("", "")] * (max(map(len, columns)) - len(column))
    rows = [[text for pair in pairs for text in pair] for pairs in zip(*columns, strict=True)]
    return markdown_table([text for direction in DIRECTIONS for text in (direction, "share")], rows)


def _call_table(profile: dict[str, Any]) -> str:
    calls = [profile[direction]["calls"] for direction in DIRECTIONS]
    names = sorted({name for each in calls for name, count in each.items() if count >= _MANY_CALLS})
    names.sort(key=lambda name: -sum(each.get(name, 0.0) for each in calls))
    return markdown_table(
        ["", *DIRECTIONS], [[f"`{name}`", *(f"{each.get(name, 0.0):,.0f}" for each in calls)] for name in names]
    )


def _gains(profile: dict[str, Any], median: Median) -> Iterator[str]:
    """What could be gained, each figure computed from the measured ones; nothing where the rounds were not measured."""
    for direction in DIRECTIONS:

        def machine(entry: dict[str, Any], direction: str = direction) -> float:
            return float(entry[direction]["machine_s_per_gb"])

        def rate(entry: dict[str, Any], direction: str = direction) -> float:
            return float(entry[direction]["gbit_per_s"])

        def own(entry: dict[str, Any], direction: str = direction) -> float:
            used = entry[direction]["agent"]
            return float(used["user_s_per_gb"] + used["system_s_per_gb"])

        agent, splice, used = median(AGENT.name, machine), median(SPLICE.name, machine), median(AGENT.name, own)
        if agent is None or splice is None or used is None:
            continue
        shares = place_shares(profile[direction]["symbols"])
        avoidable = shares["user"] + shares["copy"]
        measured = ""
        stand_in, slow, fast = median(STAND_IN.name, machine), median(AGENT.name, rate), median(STAND_IN.name, rate)
        if stand_in is not None and slow is not None and fast is not None:
            measured = _STAND_IN.format(used=stand_in, change=stand_in / agent - 1, ratio=fast / slow)
        text = _GAIN.format(
            direction=direction.capitalize(),
            agent=agent,
            splice=splice,
            most=_MOST.format(1 - splice / agent) if splice < agent else "",
            own=used,
            avoidable=avoidable,
            saved=used * avoidable,
            saved_share=used * avoidable / agent,
        )
        yield textwrap.fill(text + measured, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def flows_section(flows: dict[str, Any]) -> str:
    """The levels, and whether memory grows with the bytes."""
    if flows["error"]:
        return f"## Many flows at once\n\n**Failed**: {flows['error'].strip()}"
    rows = []
    for level in flows["levels"]:
        each = [f"{level[part] / 2**20:,.1f}" for part in ("agent", "kernel")]
        rows.append([level["name"], f"{level['moved'] * 1e-9:,.1f}", *each, f"{level['seconds']:,.1f}"])
    heading = ["", "GB so far", "agent, MiB", "kernel, MiB", "seconds"]
    return _FLOWS.format(
        flows=flows["flows"],
        amount=flows["flow_bytes"] * 1e-3,
        table=markdown_table(heading, rows),
        verdicts="\n".join(_flow_verdicts(flows)),
    ).rstrip()


def _flow_verdicts(flows: dict[str, Any]) -> Iterator[str]:
    """Growth from the first pass on: what a flow's first bytes take is taken once."""
    empty, opened, first, *_, last = flows["levels"]
    per_flow = (opened["agent"] - empty["agent"]) / flows["flows"] / 1024
    used = (first["agent"] - empty["agent"]) / flows["flows"] / 1024
    yield f"- An open flow takes {per_flow:.1f} KiB of the agent, one that has carried bytes {used:.1f} KiB."
    moved = (last["moved"] - first["moved"]) * 1e-9
    grown = last["agent"] - first["agent"]
    yield f"- The agent grew by {grown / (moved * 1000):,.0f} bytes for each MB that passed after the first pass."
    what = f"MiB that the agent's memory grew by meanwhile, while {moved:,.1f} GB passed"
    yield verdict(what, grown / 2**20, FLAT_BYTES / 2**20, at_most=True, digits=2)
