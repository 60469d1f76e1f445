"""``msocks transparent``: takes the TCP connections of a whole host, or of the hosts that it forwards for."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.parameters import INTERFACE, NETWORK
from msocks.cli.verb import Verb, control_option

_ON_OUTAGE = ("wait", "direct")


@click.command(
    cls=Verb,
    examples=[
        ("sudo msocks transparent --host", "every program of this host, until Ctrl-C"),
        ("sudo msocks transparent --router lan0", "every host behind lan0; this one's own programs go their way"),
        ("sudo msocks transparent --host --router lan0 --exclude 203.0.113.0/24", "both; that network directly"),
        ("sudo msocks transparent --config /etc/msocks/transparent.toml", "all settings from a file"),
        ("sudo msocks transparent --sweep", "remove what one that was killed has left"),
    ],
    exit_statuses={
        ExitStatus.OK: "it was stopped, and all is as before; with --sweep: nothing is left",
        ExitStatus.USAGE: "the command line cannot be understood",
        ExitStatus.UNREACHABLE: "no agent runs, or it cannot be asked",
        ExitStatus.CONFIGURATION: "it cannot be had: the privilege is missing, or the host lacks something, or it runs "
        "here already",
    },
)
@click.option("--host", is_flag=True, default=None, help="Take the connections of this host's own programs.")
@click.option(
    "--router",
    multiple=True,
    type=INTERFACE,
    help="Take the connections of other hosts that come in by this interface to be forwarded; may be given several "
    "times.",
)
@click.option(
    "--exclude",
    multiple=True,
    type=NETWORK,
    help="Destinations that are reached directly; may be given several times. Loopback, this host's own addresses and "
    "networks, link-local addresses, multicast and the proxy always are, private networks unless --private is given.",
)
@click.option(
    "--private",
    is_flag=True,
    default=None,
    help="Take connections to private networks, too: 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16, "
    "fc00::/7. The proxy has to allow them.",
)
@click.option(
    "--on-outage",
    type=click.Choice(_ON_OUTAGE),
    help="What becomes of new connections while the agent has no network, or cannot reach the proxy: they wait at the "
    "agent (the default), or go directly.",
)
@click.option("--tag", metavar="TAG", help="A name for the flows, which rules can match. By default `transparent`.")
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file with a table [transparent]. Options given besides replace its values.",
)
@click.option("--sweep", is_flag=True, help="Only remove what one that was killed has left, which does no harm.")
@control_option
def transparent(
    host: bool | None,
    router: tuple[str, ...],
    exclude: tuple[IPv4Network | IPv6Network, ...],
    private: bool | None,
    on_outage: str | None,
    tag: str | None,
    config: Path | None,
    sweep: bool,
    control: str | None,
) -> None:
    """Take the TCP connections of this host, or of others that it forwards, to the agent; until SIGTERM or SIGINT.

    Nothing is configured in any program. It runs beside the agent and has the privilege that it takes (root, or
    CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW); the agent needs none. When it prints `ready`, new connections
    are taken; those that stand are left as they are.

    It locks nobody out. When it ends, however it ends, and while there is no agent, new connections go directly. It
    writes nothing to disk. UDP is left alone, and so are names: the hosts resolve them as always.

    One of --host, --router, --config and --sweep has to be given.
    """
    from msocks.agent.control_path import RUN_SUFFIX, find_control_path
    from msocks.cli.configuration.load import transparent_settings
    from msocks.interception import transparent as mode
    from msocks.transport import service_manager

    if sweep:
        click.echo("removed" if mode.sweep() else "there was nothing to remove")
        return
    if config is None and not host and not router:
        raise click.UsageError("Give --host, --router NAME, or both; or --config FILE.")
    settings, configured = transparent_settings(
        config,
        {
            "host": host,
            "router": list(router) or None,
            "exclude": [str(network) for network in exclude] or None,
            "private": private,
            "on_outage": on_outage,
            "tag": tag,
        },
    )

    def tell() -> None:
        click.echo("ready")
        service_manager.notify(service_manager.READY)

    path = control if control is not None or configured is None else configured
    mode.run(settings, f"{find_control_path(path)}{RUN_SUFFIX}", tell)
