"""``msocks agent``: runs the agent."""

from __future__ import annotations

from pathlib import Path

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.parameters import ENDPOINT, links_option
from msocks.cli.verb import EXIT_STATUSES, Invocation, Verb
from msocks.values.endpoint import Endpoint


@click.command(
    cls=Verb,
    examples=[
        ("msocks agent --access-file ~/.config/msocks/access", "the usual way"),
        ("msocks agent --access-file FILE --link wlan0 --link usb0", "prefer wlan0, then usb0, use no other"),
        ("msocks agent --access-file FILE --listen 127.0.0.1:1080 --listen '[::1]:1080'", "listen twice"),
        ("msocks agent --config /etc/msocks/agent.toml", "all settings from a file"),
    ],
    exit_statuses={
        status: text
        for status, text in EXIT_STATUSES.items()
        if status not in (ExitStatus.UNREACHABLE, ExitStatus.INTERRUPTED)
    },
)
@click.option(
    "--access-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File that holds the access link, the one line that `msocks user add` printed. Nobody else should be able "
    "to read it (chmod 600).",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file with a table [agent], [policy] or both. Options given besides replace its values. `msocks "
    "check-config` checks it. A change of the policy counts while the agent runs.",
)
@click.option(
    "--listen",
    multiple=True,
    type=ENDPOINT,
    help="Where programs connect, by SOCKS5 or HTTP CONNECT; may be given several times. Port 0 takes a free one, "
    "which `msocks status` shows. By default 127.0.0.1:1080.",
)
@links_option
@click.option(
    "--control",
    metavar="PATH",
    help="Where the control socket shall be. By default $XDG_RUNTIME_DIR/msocks/agent.sock, /run/msocks/agent.sock "
    "(root) or ~/.local/state/msocks/agent.sock.",
)
@click.option(
    "--allow-remote",
    is_flag=True,
    default=None,
    help="Allow --listen on addresses that other hosts can reach. Whoever reaches the port uses your access, without a "
    "password: keep others out with a firewall.",
)
@click.option(
    "--spare-legs/--no-spare-legs",
    default=None,
    help="Keep a connection to the proxy open over each link that carries nothing and is not metered, which saves a "
    "round trip when flows have to move there. By default it does.",
)
@click.pass_obj
def agent(
    invocation: Invocation,
    access_file: Path | None,
    config: Path | None,
    listen: tuple[Endpoint, ...],
    links: tuple[str, ...],
    control: str | None,
    allow_remote: bool | None,
    spare_legs: bool | None,
) -> None:
    """Run the agent in the foreground, until SIGTERM or SIGINT. It needs no privilege.

    The agent takes connections of ordinary programs on a local port, as a SOCKS5 and as an HTTP proxy, and carries them
    to the MSOCKS proxy over a link that it chooses. When a link goes, its flows move to another or wait for one;
    when a better link comes, they move back. `msocks flows`, `msocks links` and `msocks move` show and change what it
    does.

    Which flow uses which link is the policy's to say, the table [policy] of the configuration file. SIGHUP, `msocks
    reload` or a change of the file take a new one; a file with a mistake is refused as a whole, and the old policy
    stays.

    When programs can connect it prints the line `ready`, whether there is a network or not. The log goes to standard
    error. At the end, flows that are left are reset. SIGUSR2 leaves them to the next agent instead, where a service
    manager holds their sockets; so does an agent that is killed.

    One of --access-file and --config has to be given.
    """
    if access_file is None and config is None:
        raise click.UsageError("Give --access-file FILE or --config FILE.")
    from msocks.agent.agent import run
    from msocks.cli.configuration.load import agent_settings, is_readable_by_others
    from msocks.cli.configuration.policy_load import ConfigurationSource
    from msocks.cli.log_setup import configure_log, log_warning

    overrides = {
        "access_file": None if access_file is None else str(access_file.absolute()),
        "listen": [str(endpoint) for endpoint in listen] or None,
        "links": list(links) or None,
        "control": None if control is None else str(Path(control).absolute()),
        "allow_remote": allow_remote,
        "spare_legs": spare_legs,
    }
    settings, secret = agent_settings(config, overrides)
    configure_log(verbose=invocation.is_verbose)
    if secret is not None and is_readable_by_others(secret):
        log_warning("access_readable_by_others", file=str(secret), remedy=f"chmod 600 {secret}")
    source = None if config is None else ConfigurationSource(config.absolute(), overrides, settings)
    run(settings, lambda: click.echo("ready"), source)
