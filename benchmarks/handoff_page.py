"""The page of `make bench-handoff`, made of the raw results alone: of its own, and of those that are run apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import false_moves_page, many_sessions_page, new_connection_page
from benchmarks.contenders import Msocks
from benchmarks.curves import Series, svg
from benchmarks.handoff_cases import MOBILE, SETTLED_S, NoLink
from benchmarks.handoff_tables import (
    Found,
    amount_table,
    figures,
    link_table,
    plain_table,
    server_table,
    spreads,
    stall_table,
)
from benchmarks.publish import origin, read_raw, write_page
from benchmarks.stalls import RATED_S, WATCHED_S

PLOT = "handoff-outage.svg"

_PAGE = """\
# Stalls at a move

{part}How long a transfer stalls when its network changes. A stall is the longest gap between two arrivals of bytes at
the receiver, in ms, from the event to the end of the transfer (to the next move, where there is one), which is at least
{watched} s later. One connection, as fast as it can go, from the lab's server to the mobile node (download) or the
other way (upload); every byte is checked. Where there is no link for a while, the figure is the excess: what comes
after the instant at which the new link has carrier, address and route.

Each cell is *median / worst* of {rounds} rounds, in which all cases, directions and contenders take turns in random
order (seed {seed}), each in a lab of its own. A round whose transfer did not end well counts as `lost`, which is
longer than any stall.

{longest}

*Target* is what MSOCKS has to keep with its median; *kept* says whether it does, *ahead of all* whether its median is
less than that of every other contender but TCP, to which nothing happens.

The gaps of the first table may come some time after the event. A TCP connection fills the queue of its link (100 ms)
and then loses packets there: that is the row where nothing happens. For the first ten seconds on a new link MSOCKS
paces what it sends, so that this does not happen (*Architecture*, "The first seconds on a new link"); later on, and on
a first link, its legs are like any other connection. This is how long it took until bytes flowed again:

{resumed}

{plot}

## The first 256 KiB

Ms from the moment Wi-Fi went down until 256 KiB had arrived that had not before. The target is for downloads, whose
server shall not wait for a time-out. The client of an upload begins its new leg in slow start, like any TCP (*The
splice*, "What cannot be helped"); what that takes by itself is measured below the table.

{amount}

{new_connection}

## What the server notices

Downloads through MSOCKS. Counters of the server's network namespace from the event to the end of the transfer (to the
next move): retransmission time-outs of all rounds together, and segments sent again in a round (*median / worst*),
beside the congestion window just before. What was under way is lost with its link: that, and nothing else, has to be
sent again. The smoothed round trip is what the server's kernel says {settled:g} s after the event (after the new link
was there); that of the path lies between the link's, and that with its queue full. The rate is
that of payload from {rated[0]:g} to {rated[1]:g} s after it (*median / least*), beside the link's.

{server}

{many}

{false_moves}

## Contenders

- **MSOCKS**: an ordinary SOCKS5 client, `msocks agent` on the mobile node, `msocks proxy --datapath splice`, an
  ordinary server. In every round that is not `lost` the server accepted exactly one connection, and while data flowed
  the proxy's kernel had no socket toward it: the session was spliced. `msocks move` is timed from the start of the
  command.
- **TCP**: a connection that has LTE alone from its beginning, and nothing happens to it.
- **MPTCP, LTE as backup**: `mptcpize run` on client and server, no proxy. A network manager on the mobile node
  (`benchmarks/mptcp_manager.py`) follows the kernel's link events, as NetworkManager does, and keeps one endpoint
  for each link that is up: LTE with the flag `backup`. The server's counters show in every round that MPTCP was spoken
  and a second subflow opened.
- **MPTCP to a SOCKS proxy**: the same to microsocks on the proxy's host, under `mptcpize run` as well; the server
  is an ordinary one.
- **wireguard-go**: the TCP connection goes through a tunnel to the proxy's host, which translates it to an address of
  its own; the tunnel's endpoint roams with the mobile node's address. A hook on the kernel's link events
  (`benchmarks/wireguard_manager.py`) sets the endpoint anew and has a keepalive sent at once: left to itself it would
  wait for 15 s without an answer. Nothing moves it off a link that is silent and up.

All use cubic, where a row does not say BBR, and no host remembers metrics of earlier connections.

## The links

{links}

## Origin

{origin}
"""

_PART = """\
**A part of the benchmark**: not all of its cases and contenders were measured.

"""

_PLOT = f"""\
![Stall against outage]({PLOT})

*The same excess against the length of the outage, downloads: medians, with all rounds as whiskers. A restart was up
to {{late:.0f}} ms late; the outage was longer by that.*
"""


def write_pages(directory: Path) -> None:
    """Write DIRECTORY/handoff.md and its plot anew, of what is in DIRECTORY/data. Raises ValueError if nothing is."""
    raw = read_raw(directory, "handoff")
    if raw is None:
        raise ValueError(f"{directory} has no results of `make bench-handoff`: run that first")
    drawing = plot(raw)
    if drawing:
        (directory / PLOT).write_text(drawing)
    apart = (read_raw(directory, f"handoff-{name}") for name in ("many", "false-moves", "new-connection"))
    write_page(directory, "handoff", page(raw, *apart))


def page(
    raw: dict[str, Any],
    many: dict[str, Any] | None = None,
    false_moves: dict[str, Any] | None = None,
    new_connection: dict[str, Any] | None = None,
) -> str:
    """The page. Raises KeyError for raw data of another schema."""
    rounds = raw["rounds"]
    late = max((lateness for entry in rounds for lateness in _lateness_ms(entry)), default=0.0)
    return _PAGE.format(
        part=_PART if raw["part"] else "",
        watched=WATCHED_S,
        settled=SETTLED_S,
        rated=RATED_S,
        rounds=max(entry["round"] for entry in rounds),
        seed=raw["seed"],
        longest=stall_table(spreads(rounds, "longest_ms")),
        resumed=plain_table(spreads(rounds, "resumed_ms")),
        plot=_PLOT.format(late=late) if plot(raw) else "",
        amount=amount_table(spreads(rounds, "amount_ms")),
        new_connection=new_connection_page.section(new_connection),
        server=server_table(rounds),
        many=many_sessions_page.section(many),
        false_moves=false_moves_page.section(false_moves),
        links=link_table(raw),
        origin=origin(raw, "data/handoff.json"),
    )


def plot(raw: dict[str, Any]) -> str:
    """The excess against the length of the outage, where there are two lengths."""
    found = spreads(raw["rounds"], "longest_ms")
    series = [
        Series(kind.title, points, ours=kind is Msocks) for kind in MOBILE if (points := _by_length(found, kind.name))
    ]
    if len({length for each in series for length in each.points}) < 2:
        return ""
    return svg("Stall beyond the outage, downloads", "length of the outage, s", "ms", series)


def _by_length(found: Found, contender: str) -> dict[float, Any]:
    points = {}
    for case, figure in figures():
        spread = found.get((figure.name, "download", contender))
        if isinstance(case, NoLink) and not case.congestion and spread is not None:
            points[case.waits_s] = spread
    return points


def _lateness_ms(entry: dict[str, Any]) -> list[float]:
    """By how much an outage was longer than it should have been."""
    lengths = {case.name: case.waits_s for case, _ in figures() if isinstance(case, NoLink)}
    if entry["case"] not in lengths or entry["error"]:
        return []
    return [
        (moment["usable"] - moment["began"] - lengths[entry["case"]]) * 1000
        for moment in entry["moments"]
        if moment["usable"] is not None
    ]
