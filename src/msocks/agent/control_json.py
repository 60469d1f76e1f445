"""The values of the control API's JSON. `docs/reference/control-api.md` is its manual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from msocks.agent.any_flow import AnyFlow
from msocks.agent.event_feed import FlowEvent
from msocks.agent.flow import FlowView
from msocks.errors import MsocksError
from msocks.values.ids import SessionId

SCHEMA = 1
"""Changes when a key goes or changes its meaning; keys may be added without."""


@dataclass(frozen=True, slots=True)
class MoveOutcome:
    """What became of one flow's move; `error` is None where it runs on the new link."""

    flow: AnyFlow
    from_link: str | None
    error: MsocksError | None


def error_as_json(error: MsocksError | None) -> dict[str, str] | None:
    """What happened and what to do next."""
    return None if error is None else {"what": error.what, "remedy": error.remedy}


def flow_as_json(view: FlowView, printed: str) -> dict[str, Any]:
    """A flow, with its short id."""
    move = view.last_move
    return {
        "id": printed,
        "session": view.session.hex(),
        "state": view.state.value,
        "link": view.link,
        "destination": str(view.destination),
        "datapath": view.datapath,
        "datapath_reason": view.datapath_reason,
        "generation": view.generation,
        "moves": view.moves,
        "bytes_up": view.bytes_up,
        "bytes_down": view.bytes_down,
        "since": view.since,
        "last_move": None
        if move is None
        else {"cause": move.cause.value, "from": move.from_link, "to": move.to_link, "time": move.at},
        "rule": view.rule,
        "pinned": view.pinned,
        "error": error_as_json(view.error),
        "process": view.origin.process,
        "pid": view.origin.pid,
        "user": view.origin.user,
        "tag": view.origin.tag,
        "source": None if view.origin.source is None else str(view.origin.source),
        "protocol": view.protocol,
        "dropped_datagrams": view.dropped_datagrams,
    }


def moves_as_json(link: str, outcomes: Iterable[MoveOutcome], printed: Mapping[SessionId, str]) -> dict[str, Any]:
    """What became of the moves to `link`."""
    moves = [
        {
            "id": printed.get(outcome.flow.session, outcome.flow.session.hex()),
            "session": outcome.flow.session.hex(),
            "from": outcome.from_link,
            "moved": outcome.error is None,
            "error": error_as_json(outcome.error),
        }
        for outcome in outcomes
    ]
    return {"to": link, "moves": moves}


def event_as_json(event: FlowEvent) -> dict[str, Any]:
    """One line of the stream of events."""
    return {"schema": SCHEMA, "event": event.kind.value, "time": event.at, **event.details}
