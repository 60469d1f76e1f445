"""``msocks user add|list|remove|password``: who may use the proxy."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.parameters import ENDPOINT
from msocks.cli.verb import EXIT_STATUSES, VerbGroup, json_option, print_json, print_table
from msocks.values.endpoint import Endpoint

_state_option = click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="The proxy's state directory.",
)
_STATUSES = {status: text for status, text in EXIT_STATUSES.items() if status is not ExitStatus.UNREACHABLE}


@click.group(
    cls=VerbGroup,
    exit_statuses=_STATUSES,
    examples=[
        ("msocks user add alice --state DIR --address proxy.example.net:1080 > alice.access", "a new user"),
        ("msocks user list --state DIR", "who may use the proxy?"),
    ],
)
def user() -> None:
    """Add, list and remove the users of a proxy, and give them SOCKS passwords.

    A proxy that runs on the state directory sees every change at once. Run these commands as the user that the proxy
    runs as.
    """


@user.command(
    short_help="Add a user and print the access link.",
    exit_statuses=_STATUSES,
    examples=[
        (
            "msocks user add alice --state DIR --address proxy.example.net:1080 > alice.access",
            "keep the access link in a file, for `msocks agent --access-file`",
        ),
        ("msocks user add bob --state DIR --address 192.0.2.1:1080 --address '[2001:db8::1]:1080'", "two addresses"),
        ("msocks user add carol --state DIR --address 192.0.2.1:1080 --qr > /dev/null", "only the QR code"),
    ],
)
@click.argument("name")
@_state_option
@click.option(
    "--address",
    "addresses",
    multiple=True,
    required=True,
    type=ENDPOINT,
    help="Where clients reach the proxy: a name or an address, and the port of its --listen. Up to 16; the first is "
    "preferred. Give an IPv4 and an IPv6 address where the proxy has both, so that networks of either kind will do.",
)
@click.option("--max-sessions", type=click.IntRange(min=0), help="At the same time; by default the proxy's own limit.")
@click.option(
    "--max-channels",
    type=click.IntRange(min=0),
    help="Control channels at the same time, one for each link of each agent; by default the proxy's own limit.",
)
@click.option("--qr", is_flag=True, help="Show the access link as a QR code as well, on standard error.")
@json_option
def add(
    name: str,
    state: Path,
    addresses: tuple[Endpoint, ...],
    max_sessions: int | None,
    max_channels: int | None,
    qr: bool,
    as_json: bool,
) -> None:
    """Add the user NAME and print the access link: one line, alone on standard output.

    The link is all that the user needs, and whoever has it is that user: hand it over on a way that you trust. It
    cannot be printed again, since the proxy keeps a hash only; a user who lost it is removed and added anew.

    State directory and key are created where they are missing.
    """
    from msocks.store.administration import add_user

    link = add_user(state, name, addresses, max_sessions=max_sessions, max_channels=max_channels)
    if as_json:
        print_json({"name": name, "access_link": str(link)})
    else:
        click.echo(str(link))
    if qr:
        import segno

        segno.make(str(link), micro=False).terminal(out=sys.stderr, compact=True)


@user.command(
    "list",
    short_help="List the users.",
    exit_statuses=_STATUSES,
    examples=[("msocks user list --state /var/lib/msocks", "who may use the proxy?")],
)
@_state_option
@json_option
def list_(state: Path, as_json: bool) -> None:
    """List the users: name, when they were added (UTC), whether they have a SOCKS password, and limits of their own."""
    from msocks.store.administration import list_users

    users = list_users(state)
    if as_json:
        print_json(
            {
                "users": [
                    {
                        "name": each.name,
                        "created_at": each.created_at.isoformat(),
                        "has_password": each.has_password,
                        "max_sessions": each.max_sessions,
                        "max_channels": each.max_channels,
                    }
                    for each in users
                ]
            }
        )
    elif not users:
        click.echo("no users", err=True)
    else:
        rows = [
            (
                each.name,
                each.created_at.strftime("%Y-%m-%d %H:%M"),
                "yes" if each.has_password else "no",
                "-" if each.max_sessions is None else str(each.max_sessions),
                "-" if each.max_channels is None else str(each.max_channels),
            )
            for each in users
        ]
        print_table(("NAME", "ADDED", "PASSWORD", "MAX SESSIONS", "MAX CHANNELS"), rows)


@user.command(
    short_help="Remove a user and end the user's sessions.",
    exit_statuses=_STATUSES,
    examples=[("msocks user remove alice --state DIR", "end alice's access now")],
)
@click.argument("name")
@_state_option
def remove(name: str, state: Path) -> None:
    """Remove the user NAME. The access link is worthless then; a running proxy ends the user's sessions at once."""
    from msocks.store.administration import remove_user

    remove_user(state, name)


@user.command(
    short_help="Give a user a password for plain SOCKS5.",
    exit_statuses=_STATUSES,
    examples=[
        ("msocks user password alice --state DIR", "ask for the password on the terminal, twice"),
        ("pwgen -s 24 1 | tee /dev/stderr | msocks user password alice --state DIR", "read it from a pipe"),
        ("msocks user password alice --state DIR --none", "take it away"),
    ],
)
@click.argument("name")
@_state_option
@click.option("--none", "no_password", is_flag=True, help="Take the password away.")
def password(name: str, state: Path, no_password: bool) -> None:
    """Give the user NAME a password for plain SOCKS5 clients (RFC 1929), which know no access links.

    It is asked for on the terminal, or read from standard input: its first line. It has 1 to 255 bytes and goes over
    the network unencrypted, as SOCKS5 has it: choose one that is used for nothing else. Plain SOCKS5 connections do not
    survive a change of network.
    """
    from msocks.store.administration import set_password

    if no_password:
        chosen = None
    elif sys.stdin.isatty():
        chosen = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        chosen = sys.stdin.readline().rstrip("\r\n")
    set_password(state, name, chosen)
