"""``msocks run``: runs a program whose TCP connections go through the agent."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.parameters import NETWORK
from msocks.cli.verb import Invocation, Verb, control_option
from msocks.values.origin import Wish

_WAYS = ("auto", "cgroup", "proxychains", "environment")
_ON_LOSS = ("move", "wait", "reset")


@click.command(
    cls=Verb,
    context_settings={"allow_interspersed_args": False},
    examples=[
        (
            "sudo msocks run git clone https://server.example/project.git",
            "no setting in git; it runs as you, not as root",
        ),
        ("sudo msocks run --link usb0 --tag backup -- rsync -a tree/ rsync://server.example/tree/", "over one link"),
        (
            "sudo msocks run --dns proxy --no-udp curl https://server.example/",
            "not even a question for the name gets out",
        ),
        ("msocks run --via environment curl -O https://server.example/large.iso", "without privilege"),
        ("sudo msocks run bash", "a shell: all that is started from it"),
    ],
    exit_statuses={
        ExitStatus.OK: "the program's own status, and so are all others",
        ExitStatus.USAGE: "the command line cannot be understood",
        ExitStatus.UNREACHABLE: "no agent runs, or it cannot be asked",
        ExitStatus.CONFIGURATION: "what was asked for cannot be had; the program was not started",
    },
)
@click.option(
    "--via",
    type=click.Choice(_WAYS),
    default="auto",
    show_default=True,
    help="How connections come to the agent: `cgroup`, by hooks in the kernel (any program; as root); `proxychains`, "
    "by a library in front of the program (dynamically linked programs); `environment`, by variables such as ALL_PROXY "
    "(programs that read them). `auto` takes the first that can be had, and says so where it is not `cgroup`.",
)
@click.option("--link", metavar="NAME", help="The link to use, as `msocks links` shows it, as long as it is there.")
@click.option(
    "--prefer", multiple=True, metavar="NAME", help="A link to prefer; given several times, the first comes first."
)
@click.option(
    "--on-loss",
    type=click.Choice(_ON_LOSS),
    help="What happens to a connection whose link is lost: it moves to another, waits for that one, or is reset.",
)
@click.option("--tag", metavar="TAG", help="A name for this run's flows: `msocks flows --json` shows it.")
@click.option(
    "--exclude",
    "excluded",
    multiple=True,
    type=NETWORK,
    help="Destinations that are reached directly; may be given several times. Loopback, this host's own and link-local "
    "addresses, multicast and the proxy always are.",
)
@click.option(
    "--dns",
    type=click.Choice(["host", "proxy"]),
    default="host",
    show_default=True,
    help="Who resolves names: the host as always, or the proxy. With `proxy`, no question for a name leaves the host; "
    "the program sees stand-in addresses, of 198.18.0.0/15 and 100::/64.",
)
@click.option("--no-udp", is_flag=True, help="Refuse UDP (EPERM), except over loopback: what is no TCP goes nowhere.")
@click.option("--user", metavar="NAME", help="Run the program as this user. By default, under sudo, who called sudo.")
@control_option
@click.argument("command", metavar="CMD [ARGUMENT]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(
    invocation: Invocation,
    via: str,
    link: str | None,
    prefer: tuple[str, ...],
    on_loss: str | None,
    tag: str | None,
    excluded: tuple[IPv4Network | IPv6Network, ...],
    dns: str,
    no_udp: bool,
    user: str | None,
    control: str | None,
    command: tuple[str, ...],
) -> int:
    """Run CMD; every TCP connection that it and its children make goes through the agent.

    Nothing is configured in the program, and it may be of any kind: dynamic, static, Go. Its connect() ends when the
    connection to the server stands, or fails as the server or the proxy fails it. `msocks` becomes the program:
    signals, terminal and exit status are its own.

    The usual way takes privilege (sudo), for the kernel's hooks alone: the program runs as the user who called sudo.
    The agent needs none. Without the privilege one of the other ways is taken, with a line on standard error that says
    which.

    UDP is left alone unless --no-udp is given, and names are resolved by the host unless --dns proxy is.
    """
    from msocks.cli.run_ways import ONLY_BY_HOOKS, CgroupSettings, ProgramStart

    settings = CgroupSettings(Wish(link, prefer, on_loss), tag, excluded, names=dns == "proxy", no_udp=no_udp)
    if via in ("proxychains", "environment") and not settings.is_empty:
        raise click.UsageError(f"{ONLY_BY_HOOKS} work with --via cgroup alone.")
    return ProgramStart(command, control, user, verbose=invocation.is_verbose).run(via, settings)
