"""``msocks sessions``: what the running proxy carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from msocks.cli.verb import Verb, json_option, print_json, print_table


@click.command(
    cls=Verb,
    examples=[
        ("msocks sessions --state /var/lib/msocks", "who is connected to what?"),
        ("msocks sessions --state DIR --json | jq '.sessions | length'", "how many are there?"),
        ("msocks sessions --state DIR --udp", "who sends datagrams, and what became of them?"),
        ("msocks sessions --state DIR --troubles", "which packets were dropped, and why?"),
    ],
)
@click.option(
    "--state", metavar="DIR", type=click.Path(path_type=Path), required=True, help="The proxy's state directory."
)
@click.option(
    "--troubles",
    is_flag=True,
    help="Instead of the sessions show what the datapath as a whole has dropped or refused, by cause, since it began.",
)
@click.option("--udp", is_flag=True, help="Instead of the sessions show the UDP associations.")
@json_option
def sessions(state: Path, troubles: bool, udp: bool, as_json: bool) -> None:
    """List the sessions of the proxy that runs on a state directory.

    STATE is `connecting`, `live`, `parked` (the client has no network at the moment) or `ended`. DATAPATH is what
    carries the bytes. CLIENT is the address that the present leg comes from. AGE is the time since the session began;
    UP and DOWN are bytes to and from the server.

    With --udp, KIND is `plain` (a SOCKS5 client) or `mobile` (an agent's flow, which has had so many PATHS). PORT is
    what servers see. SENT and RECEIVED are datagrams to and from servers, DROPPED those that went no further.
    """
    from msocks.cli.readable import duration, size
    from msocks.store import running_proxy

    if troubles and udp:
        raise click.UsageError("Give --troubles or --udp, not both.")
    if udp:
        _show_udp(running_proxy.udp_associations(state), as_json=as_json)
        return
    if troubles:
        _show_troubles(*running_proxy.troubles(state), as_json=as_json)
        return
    found = running_proxy.sessions(state)
    if as_json:
        print_json({"sessions": found})
    elif not found:
        click.echo("no sessions", err=True)
    else:
        rows = [
            (
                str(session["id"])[:8],
                str(session["user"]),
                str(session["state"]),
                str(session["client"] or "-"),
                str(session["destination"]),
                str(session["datapath"]),
                duration(session["age"]),
                size(session["bytes_up"]),
                size(session["bytes_down"]),
            )
            for session in found
        ]
        print_table(("ID", "USER", "STATE", "CLIENT", "DESTINATION", "DATAPATH", "AGE", "UP", "DOWN"), rows)


def _show_troubles(datapath: str, found: dict[str, dict[str, int]], *, as_json: bool) -> None:
    if as_json:
        print_json({"datapath": datapath, "troubles": found})
        return
    rows = [(kind, cause, str(count)) for kind, counts in found.items() for cause, count in counts.items() if count]
    if rows:
        print_table(("KIND", "CAUSE", "COUNT"), rows)
    else:
        click.echo(f"the {datapath} counts none", err=True)


def _show_udp(found: list[dict[str, Any]], *, as_json: bool) -> None:
    from msocks.cli.readable import duration

    if as_json:
        print_json({"udp": found})
        return
    if not found:
        click.echo("no UDP associations", err=True)
        return
    rows = [
        (
            str(each["user"]) or "-",
            "mobile" if each["mobile"] else "plain",
            str(each["client"] or "-"),
            str(each["port"]),
            str(each["paths"]),
            duration(each["age"]),
            str(each["sent"]),
            str(each["received"]),
            ", ".join(f"{count} {cause}" for cause, count in each["dropped"].items() if count) or "-",
        )
        for each in found
    ]
    print_table(("USER", "KIND", "CLIENT", "PORT", "PATHS", "AGE", "SENT", "RECEIVED", "DROPPED"), rows)
