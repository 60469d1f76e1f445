"""``msocks flows`` and ``msocks move``."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.verb import Verb, control_option, json_option, print_json, print_table


@click.command(
    cls=Verb,
    examples=[
        ("msocks flows", "what is there, and which link carries it?"),
        ("msocks flows --follow", "watch flows come, move, park and end"),
        ("msocks flows --json | jq '.flows[] | select(.state == \"parked\")'", "those that wait for a network"),
    ],
)
@click.option("--follow", is_flag=True, help="Print a line for each event from now on, until interrupted.")
@control_option
@json_option
def flows(control: str | None, follow: bool, as_json: bool) -> None:
    """List the flows: programs' connections, and what carries them.

    ID names a flow in `msocks move`. STATE is `connecting`; `live`; `parked` (no network: the proxy holds the server's
    side until there is one); or `ended` (listed for a minute). DATAPATH is how the proxy carries the bytes, `relay`
    or `splice`. MOVES is how often the flow got another leg. UP and DOWN are bytes from and to the program. FROM is the
    program, or the other host, where the agent was told of it (`msocks run`, `msocks transparent`).

    With --follow and --json, each line is one JSON object.
    """
    from msocks.cli.agent_client import AgentClient

    agent = AgentClient(control)
    if follow:
        for event in agent.events():
            click.echo(json.dumps(event) if as_json else _event_line(event))
        return
    found = agent.flows()
    if as_json:
        print_json({"flows": found})
    elif not found:
        click.echo("no flows", err=True)
    else:
        headings = ("ID", "STATE", "LINK", "DESTINATION", "DATAPATH", "MOVES", "UP", "DOWN", "FROM")
        print_table(headings, [_row(flow) for flow in found])


@click.command(
    cls=Verb,
    examples=[
        ("msocks move 3fa9c1d2 --to usb0", "carry one flow over usb0"),
        ("msocks move all --to wlan0", "carry everything over wlan0"),
    ],
    exit_statuses={
        ExitStatus.OK: "every flow that was meant runs on the link",
        ExitStatus.FAILED: "one of them does not; the message says why",
        ExitStatus.USAGE: "the command line cannot be understood",
        ExitStatus.UNREACHABLE: "no agent runs, or it cannot be asked",
        ExitStatus.INTERRUPTED: "interrupted; the move goes on",
    },
)
@click.argument("flow", metavar="FLOW")
@click.option("--to", "link", metavar="LINK", required=True, help="The link's name, as `msocks links` shows it.")
@control_option
@json_option
def move(flow: str, link: str, control: str | None, as_json: bool) -> ExitStatus:
    """Carry FLOW over another link from now on, in both directions.

    FLOW is an id as `msocks flows` shows it, or the beginning of one; or `all`. The command returns when the flow runs
    on the link. It prefers that link from now on: it leaves it only when the link is lost, and returns to it. A flow
    that cannot move goes on where it is.
    """
    from msocks.cli.agent_client import AgentClient

    moves = AgentClient(control).move(flow, link)
    failed = [each for each in moves if not each["moved"]]
    if as_json:
        print_json({"to": link, "moves": moves})
    elif not moves:
        click.echo("no flows", err=True)
    for each in [] if as_json else moves:
        if each["moved"]:
            click.echo(f"{each['id']}  {each['from'] or '-'} -> {link}")
        else:
            error = each["error"]
            remedy = f"; {error['remedy']}" if error["remedy"] else ""
            click.echo(f"msocks: {each['id']}: {error['what']}{remedy}", err=True)
    return ExitStatus.FAILED if failed else ExitStatus.OK


def _row(flow: dict[str, Any]) -> tuple[str, ...]:
    from msocks.cli.readable import size

    return (
        str(flow["id"]),
        str(flow["state"]),
        str(flow["link"] or "-"),
        str(flow["destination"]),
        "-" if flow["datapath"] == "none" else str(flow["datapath"]),
        str(flow["moves"]),
        size(flow["bytes_up"]),
        size(flow["bytes_down"]),
        _origin(flow),
    )


def _origin(flow: dict[str, Any]) -> str:
    if flow["source"] is not None:
        return str(flow["source"])
    if flow["process"] is None:
        return "-"
    name = "".join(each if each.isprintable() else "?" for each in flow["process"])  # a program chooses its name
    return f"{name}[{flow['pid']}]"


def _event_line(event: dict[str, Any]) -> str:
    time = datetime.fromtimestamp(event["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    if event["event"] == "missed":
        return f"{time}  {event['events']} events were missed"
    match event["event"]:
        case "carried" if event["from"] is None:
            news = f"live on {event['to']}"
        case "carried":
            news = f"{event['from']} -> {event['to']} ({event['cause']})"
        case "ended" if event["error"] is not None:
            news = f"ended: {event['error']['what']}"
        case other:
            news = str(other)
    return f"{time}  {event['id']}  {event['destination']}  {news}"
