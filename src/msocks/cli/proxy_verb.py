"""``msocks proxy``: runs the proxy."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.parameters import ENDPOINT, NETWORK
from msocks.cli.verb import EXIT_STATUSES, Invocation, Verb
from msocks.values.endpoint import Endpoint


@click.command(
    cls=Verb,
    examples=[
        ("msocks proxy --listen '[::]:1080' --state /var/lib/msocks", "on all addresses, IPv6 and IPv4"),
        ("msocks proxy --listen 192.0.2.1:443 --state DIR --allow 10.20.0.0/16", "users may also go to 10.20.*"),
        ("msocks proxy --config /etc/msocks/proxy.toml", "all settings from a file"),
    ],
    exit_statuses={
        status: text
        for status, text in EXIT_STATUSES.items()
        if status not in (ExitStatus.UNREACHABLE, ExitStatus.INTERRUPTED)
    },
)
@click.option(
    "--listen",
    multiple=True,
    type=ENDPOINT,
    help="TCP and UDP endpoint for clients; may be given several times. `[::]:PORT` takes IPv4 as well. Port 0 takes a "
    "free one, which the log shows.",
)
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="State directory: the proxy's key and its users. Created where it is missing.",
)
@click.option(
    "--allow",
    multiple=True,
    type=NETWORK,
    help="Destinations that are allowed although they are denied by default (loopback, link-local and private ranges, "
    "multicast). Names are checked by what they resolve to.",
)
@click.option("--deny", multiple=True, type=NETWORK, help="Destinations that are denied, whatever --allow says.")
@click.option(
    "--open",
    "open_",
    is_flag=True,
    default=None,
    help="Serve plain SOCKS5 clients without authentication: whoever reaches the port may use it.",
)
@click.option(
    "--datapath",
    type=click.Choice(["auto", "splice", "relay"]),
    help="What carries the bytes: `relay` copies them in user space; `splice` rewrites packets in the kernel, or fails "
    "with the reason; `auto` (the default) takes the splice where it can be had. `msocks sessions` shows which it is, "
    "and why.",
)
@click.option(
    "--store",
    type=click.Choice(["sqlite", "memory"]),
    help="Where the proxy notes whose the spliced sessions are: `sqlite` (the default), in the state directory, so "
    "that a proxy that is started after a crash can reconnect them; `memory` writes nothing, and after a crash they go "
    "on to their end where they are.",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file with a table [proxy]. Options given besides replace its values. `msocks check-config` checks it.",
)
@click.pass_obj
def proxy(
    invocation: Invocation,
    listen: tuple[Endpoint, ...],
    state: Path | None,
    allow: tuple[IPv4Network | IPv6Network, ...],
    deny: tuple[IPv4Network | IPv6Network, ...],
    open_: bool | None,
    datapath: str | None,
    store: str | None,
    config: Path | None,
) -> None:
    """Run the proxy in the foreground, until SIGTERM or SIGINT. It needs no privilege for ports from 1024 on.

    One port takes agents, programs with the library, and plain SOCKS5 clients with a password (`msocks user password`).
    A firewall has to let TCP and UDP through to it. Users are added with `msocks user add`, also while it runs.

    When it accepts clients it prints the line `ready`. The log goes to standard error. When it is stopped, sessions
    have 5 seconds to end; a second signal ends it at once.

    --listen and --state, or --config, have to be given.
    """
    if config is None and (not listen or state is None):
        raise click.UsageError("Give --listen HOST:PORT and --state DIR, or --config FILE.")
    from msocks.cli.configuration.load import proxy_config
    from msocks.cli.log_setup import configure_log
    from msocks.proxy.daemon import run

    settings = proxy_config(
        config,
        {
            "listen": [str(endpoint) for endpoint in listen] or None,
            "state": None if state is None else str(state.absolute()),
            "allow": [str(network) for network in allow] or None,
            "deny": [str(network) for network in deny] or None,
            "open": open_,
            "datapath": datapath,
            "store": store,
        },
    )
    configure_log(verbose=invocation.is_verbose)
    run(settings, lambda: click.echo("ready"))
