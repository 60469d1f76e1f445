"""The part of the handoff page about what slow start alone takes, made of the raw rounds alone. Pure."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders import Msocks, PlainTcp
from benchmarks.publish import origin
from benchmarks.summary import LOST, Spread, shown

_SECTION = """\
How long slow start takes by itself: the first 256 KiB of an upload on a new TCP connection over LTE alone, from the
moment that its handshake is done, took {new} ms, and uploads through MSOCKS from the moment Wi-Fi went down {moved}
ms (*median / worst* of {rounds} rounds, in which both take turns).

{origin}
"""


def section(raw: dict[str, Any] | None) -> str:
    """The section; empty where it was not measured."""
    if raw is None:
        return ""
    return _SECTION.format(
        new=_pair(raw, PlainTcp.name),
        moved=_pair(raw, Msocks.name),
        rounds=max(entry["round"] for entry in raw["rounds"]),
        origin=origin(raw, "data/handoff-new-connection.json"),
    )


def _pair(raw: dict[str, Any], contender: str) -> str:
    amounts = [entry["amount_ms"] for entry in raw["rounds"] if entry["contender"] == contender]
    spread = Spread(tuple(LOST if each is None else each for each in amounts))
    return f"{shown(spread.median, 0)} / {shown(spread.most, 0)}"
