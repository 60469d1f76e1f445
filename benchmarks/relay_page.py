"""The page of `make bench-relay`, made of the raw rounds alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.publish import origin
from benchmarks.relay_measurements import BULK_BYTES, IDLE_LEVELS, RATE_S
from benchmarks.relays import RELAYS, Forwarding, MsocksAgent, MsocksProxy, Pproxy, PproxyChain, Relay
from benchmarks.summary import Spread, markdown_table, shown

_PAGE = """\
# The relay

What it costs a connection to go through the proxy, with links that nothing slows down (veth between network
namespaces of one machine), beside programs that do comparable work in the same run: pproxy, a SOCKS proxy in Python,
and [dante], one in C. Client, relay and server share the machine's processors, so a faster relay also leaves more
to the two ends. {rounds} rounds, in which all relays and measurements take turns in random order (seed {seed}), each
in a lab of its own. Cells are *median (least - most)*.

[dante]: https://www.inet.no/dante/

## Throughput

One connection, {bulk_gb:g} GB each way, payload in Gbit/s, and the processor seconds that the relay's processes spend
on each GB.

{throughput}

{verdicts}

## Connections per second

SOCKS CONNECT, one byte there and back, close; 32 at a time, for {rate_s:g} s. Beside the rate, the processor time that
the relay's processes spend on each connection, which does not depend on what client and server cost.

{rates}

## Memory of an idle session

What each more session takes after its first byte there and back, in KiB: the slope over {levels} sessions of the
programs' memory (PSS) and of the kernel's (slabs, stacks and page tables of the whole machine, less what the same
number of direct connections takes).

{memory}

## Origin

{origin}
"""


def _values(
    raw: dict[str, Any], relay: str, measurement: str, figure: Callable[[dict[str, Any]], float]
) -> list[float]:
    return [
        figure(entry)
        for entry in raw["rounds"]
        if (entry["relay"], entry["measurement"]) == (relay, measurement) and not entry["error"]
    ]


def _failures(raw: dict[str, Any], relay: str, measurement: str) -> str:
    failed = [
        entry
        for entry in raw["rounds"]
        if (entry["relay"], entry["measurement"]) == (relay, measurement) and entry["error"]
    ]
    return f" ({len(failed)} rounds failed)" if failed else ""


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    spread = Spread(tuple(values))
    return f"{shown(spread.median, digits)} ({shown(spread.least, digits)} - {shown(spread.most, digits)})"


def _throughput(raw: dict[str, Any], relay: str, direction: str) -> list[float]:
    return _values(raw, relay, "throughput", lambda entry: float(entry[direction]["gbit_per_s"]))


def _throughput_table(raw: dict[str, Any]) -> str:
    rows = []
    for relay in RELAYS:
        cells = [_cell(_throughput(raw, relay.name, direction), 2) for direction in ("down", "up")]
        for direction in ("down", "up"):

            def used(entry: dict[str, Any], direction: str = direction) -> float:
                return float(entry[direction]["relay_s_per_gb"])

            cells.append(_cell(_values(raw, relay.name, "throughput", used), 2))
        rows.append([relay.title + _failures(raw, relay.name, "throughput"), *cells])
    return markdown_table(["", "down, Gbit/s", "up, Gbit/s", "down, s/GB", "up, s/GB"], rows)


def _verdicts(raw: dict[str, Any]) -> str:
    """How the medians of MSOCKS compare with those of what it has to equal."""
    lines = []
    pairs: list[tuple[type[Relay], type[Relay]]] = [(MsocksProxy, Pproxy), (MsocksAgent, PproxyChain)]
    for ours, theirs in pairs:
        for direction in ("down", "up"):
            mine, other = (_throughput(raw, relay.name, direction) for relay in (ours, theirs))
            if mine and other:
                ratio = Spread(tuple(mine)).median / Spread(tuple(other)).median
                kept = "kept" if ratio >= 1 else "**not kept**"
                lines.append(f"- {ours.title}, {direction}: {ratio:.2f} times {theirs.title}; target 1.00, {kept}.")
    return "\n".join(lines)


def _rate_table(raw: dict[str, Any]) -> str:
    rows = []
    for relay in RELAYS:
        rate = _values(raw, relay.name, "rate", lambda entry: float(entry["per_s"]))
        used = _values(raw, relay.name, "rate", lambda entry: float(entry["relay_us"]))
        rows.append([relay.title + _failures(raw, relay.name, "rate"), _cell(rate, 0), _cell(used, 0)])
    return markdown_table(["", "connections/s", "relay, us each"], rows)


def _memory_table(raw: dict[str, Any]) -> str:
    def kernel(entry: dict[str, Any]) -> float:
        return float(entry["bytes_per_session"]["kernel"])

    direct = _values(raw, Forwarding.name, "idle", kernel)
    base = Spread(tuple(direct)).median if direct else 0.0
    rows = []
    for relay in RELAYS:
        if relay is Forwarding:
            continue
        cells = []
        for part in ("proxy", "agent"):

            def program(entry: dict[str, Any], part: str = part) -> float:
                return float(entry["bytes_per_session"][part]) / 1024

            has_part = any(part in entry.get("bytes_per_session", {}) for entry in _of(raw, relay))
            cells.append(_cell(_values(raw, relay.name, "idle", program), 1) if has_part else "-")
        cells.append(_cell([(value - base) / 1024 for value in _values(raw, relay.name, "idle", kernel)], 1))
        rows.append([relay.title + _failures(raw, relay.name, "idle"), *cells])
    return markdown_table(["", "proxy", "on the mobile node", "kernel"], rows)


def _of(raw: dict[str, Any], relay: type[Relay]) -> list[dict[str, Any]]:
    return [entry for entry in raw["rounds"] if entry["relay"] == relay.name]


def page(raw: dict[str, Any]) -> str:
    """The page. Raises KeyError for raw data of another schema."""
    return _PAGE.format(
        rounds=max(entry["round"] for entry in raw["rounds"]),
        seed=raw["seed"],
        bulk_gb=BULK_BYTES * 1e-9,
        rate_s=RATE_S,
        levels=f"{IDLE_LEVELS[0]} to {IDLE_LEVELS[-1]}",
        throughput=_throughput_table(raw),
        verdicts=_verdicts(raw),
        rates=_rate_table(raw),
        memory=_memory_table(raw),
        origin=origin(raw, "data/relay.json"),
    )
