"""``msocks doctor``: whether this host can splice, and what it lacks."""

from __future__ import annotations

from pathlib import Path

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.verb import Verb, json_option, print_json
from msocks.errors import ConfigurationError

_MARKS = {True: "ok", False: "MISSING", None: "?"}


@click.command(
    cls=Verb,
    examples=[
        ("msocks doctor", "would a proxy on this host splice?"),
        (
            "systemd-run --pipe -p User=msocks "
            '-p AmbientCapabilities="CAP_BPF CAP_PERFMON CAP_NET_ADMIN CAP_NET_RAW" msocks doctor',
            "and one that is not root's, but has the capabilities of systemd/msocks-proxy.service?",
        ),
        ("msocks doctor --discard-splice-state /var/lib/msocks", "remove what a stopped proxy left in the kernel"),
    ],
    exit_statuses={
        ExitStatus.OK: "the splice can be had; with --discard-splice-state: nothing is left",
        ExitStatus.FAILED: "it cannot, and a proxy relays; what is missing is named",
        ExitStatus.USAGE: "the command line cannot be understood",
        ExitStatus.CONFIGURATION: "with --discard-splice-state: a proxy runs there, or DIR is no state directory",
    },
)
@click.option(
    "--discard-splice-state",
    "discard",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Look at nothing, but remove what the proxy with the state directory DIR has left in the kernel: its spliced "
    "sessions end. It must not be running.",
)
@json_option
def doctor(discard: Path | None, as_json: bool) -> ExitStatus:
    """Check what the splice, the datapath in the kernel, needs of this host and of the user who runs this.

    Run it as the user who will run the proxy, with the same capabilities. Nothing is changed: programs are loaded to
    see whether the kernel takes them, and attached nowhere. Each thing that is missing comes with what to do about it.
    Without the splice a proxy relays, which needs nothing of all this.

    It also tells when `msocks transparent` was killed here and has left something.
    """
    if discard is not None:
        was_there = _discard(discard)
        if as_json:
            print_json({"discarded": was_there})
        else:
            click.echo("removed" if was_there else "there was nothing to remove")
        return ExitStatus.OK

    from msocks.datapath.splice.feature_probe import is_available, probe
    from msocks.interception.transparent import left_over

    checks = probe()
    available = is_available(checks)
    rules = left_over()
    if as_json:
        print_json(
            {
                "splice": available,
                "checks": [
                    {
                        "name": check.name,
                        "ok": check.ok,
                        "finding": check.finding,
                        "remedy": check.remedy,
                        "reason": None if check.ok is not False else check.reason.name.lower().replace("_", "-"),
                    }
                    for check in checks
                ],
                "transparent_left_over": rules,
            }
        )
    else:
        for check in checks:
            click.echo(f"{_MARKS[check.ok]:<8} {check.name}: {check.finding}")
            if check.remedy:
                click.echo(f"{'':<8} {check.remedy}")
        if rules:
            click.echo(f"{'left':<8} transparent mode: {rules} rules of one that was killed; they do nothing")
            click.echo(f"{'':<8} msocks transparent --sweep removes them, and so does the next start")
        click.echo("The splice can be had." if available else "The splice cannot be had: a proxy relays.")
    return ExitStatus.OK if available else ExitStatus.FAILED


def _discard(directory: Path) -> bool:
    """Whether there was anything to remove."""
    from msocks.datapath.splice.discarding import discard, is_there
    from msocks.proxy.datapath_choice import pin_directory
    from msocks.store import running_proxy
    from msocks.store.state_directory import StateDirectory

    # Root may clean up behind a proxy that another user runs.
    state = StateDirectory(directory)
    if not state.users.exists():
        raise ConfigurationError(
            f"{directory} is not the state directory of a proxy", remedy="give that of `msocks proxy`"
        )
    try:
        running_proxy.request(state, "GET", "/sessions")
    except running_proxy.ProxyNotRunning:
        pass
    else:
        raise ConfigurationError(
            f"the proxy of {directory} is running", remedy="stop it first; it takes its splice away when it is idle"
        )
    pins = pin_directory(directory)
    was_there = is_there(pins)
    discard(pins)
    return was_there
