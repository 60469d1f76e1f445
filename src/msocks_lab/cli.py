"""The program `msocks-lab`: a lab for a person at a terminal."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from msocks_lab import launch
from msocks_lab.config import STANDARD_LAB, CutMode, Direction, LabConfig, PortalKind, parse_changes, parse_link
from msocks_lab.errors import LabError, SetupError
from msocks_lab.lab import Lab
from msocks_lab.link import Event, Link
from msocks_lab.measurement import LinkMeasurement, measure, measurement_lock

_SCHEMA = 1
_HELP = """Build networks with a mobile host on this machine, and disturb them.

A lab has the hosts mobile, proxy, server, core, and one access router radio-LINK per link of the mobile. All of them
are anonymous network namespaces: nothing outside the lab is touched, and `down` leaves nothing behind. It needs root.
The exit code is 0, 1 where the lab refuses or is not there, 2 for a wrong command line.

\b
  msocks-lab up --link wifi:rtt=5,rate=50 --link lte:rtt=50,rate=20
  msocks-lab shell server -- nginx -c /tmp/nginx.conf
  msocks-lab shell mobile
  msocks-lab cut wifi --silent
  msocks-lab restore wifi
  msocks-lab down
"""
_LINK_HELP = """A link is NAME or NAME:KEY=VALUE,... with the keys rtt (ms, both ways together), rate (Mbit/s),
queue (ms), queue_bytes, jitter (ms), loss, duplicate, reorder (percent), reorder_ms, mtu, interface_mtu,
nat_tcp_idle_s, nat_udp_idle_s, pep_buffer_bytes; up.KEY and down.KEY set one direction (delay instead of rtt there).
Words without a value: v4only, v6only, nat, fat (no emulator, full speed), pep (a middlebox ends TCP and ACKs for the
far end), detached (has no address until `attach`)."""


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the lab become a message and exit code 1."""
    try:
        yield
    except LabError as error:
        raise click.ClickException(str(error)) from error


def _print_json(data: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema": _SCHEMA, **data}))


def _choose(name: str | None) -> str:
    """The lab that is meant: the named one, else the only one from `up`."""
    if name is not None:
        return name
    names = [item for item in launch.running() if not launch.is_tied(item)]
    if len(names) == 1:
        return names[0]
    if not names:
        raise SetupError("No lab runs", "Start one with `msocks-lab up`")
    raise SetupError(f"Several labs run: {', '.join(names)}", "Choose one with --lab NAME")


@contextmanager
def _attached(name: str | None) -> Iterator[Lab]:
    with _told():
        lab = Lab.attach(_choose(name))
        try:
            yield lab
        finally:
            lab.close()


_lab = click.option("--lab", "lab_name", metavar="NAME", help="The lab that is meant, where several run.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="msocks", prog_name="msocks-lab")
def main() -> None:
    """The program."""


@main.command(epilog=_LINK_HELP)
@click.option("--name", default="lab", show_default=True, help="What the lab is called.")
@click.option("--link", "links", multiple=True, metavar="LINK", help="An uplink, in order of the routes' metrics.")
@click.option("--seed", default=1, show_default=True, help="What chance begins with.")
@click.option("--no-validate", is_flag=True, help="Do not measure the links.")
@_json
def up(name: str, links: tuple[str, ...], seed: int, no_validate: bool, as_json: bool) -> None:
    """Build a lab that runs until `down`.

    Without --link it has wifi (5 ms RTT, 50 Mbit/s) and lte (50 ms RTT, 20 Mbit/s). Then the links are measured and
    the real figures printed.
    """
    with _told():
        config = LabConfig([parse_link(link) for link in links], seed) if links else STANDARD_LAB
        launch.start_supervisor(name, config, tied=False)
    if not as_json:
        click.echo(f"Lab {name} is up. Try `msocks-lab status`, `msocks-lab shell mobile`, `msocks-lab down`.")
    if no_validate:
        if as_json:
            _print_json({"name": name})
        return
    _validate(name, [link.name for link in config.links if link.attached], as_json)


@main.command("list")
@_json
def list_labs(as_json: bool) -> None:
    """Print the names of the labs that run, those of tests included."""
    names = launch.running()
    if as_json:
        _print_json({"labs": names})
    elif names:
        click.echo("\n".join(names))


@main.command()
@_lab
@_json
def status(lab_name: str | None, as_json: bool) -> None:
    """Print hosts, addresses, links and what has crossed them."""
    with _attached(lab_name) as lab:
        links = []
        for link in lab.links:
            counted = link.counters()
            links.append({**link.describe(), "bytes_up": counted.bytes_up, "bytes_down": counted.bytes_down})
        hosts = {name: list(lab.host(name).addresses) for name in lab.hosts}
        if as_json:
            _print_json({"name": lab.name, "hosts": hosts, "links": links})
            return
        click.echo(f"lab     {lab.name}")
        for host, addresses in hosts.items():
            click.echo(f"host    {host:14} {' '.join(addresses)}")
        for shown in links:
            click.echo(f"link    {shown['name']:14} {shown['state']:18} {' '.join(shown['addresses'])}")
            click.echo(f"        {'':14} {_speed(shown)}")
            click.echo(f"        {'':14} {shown['bytes_up']} bytes up, {shown['bytes_down']} down")


_FAULTS = ("loss", "duplicate", "reorder")


def _speed(link: dict[str, Any]) -> str:
    if link["fat"]:
        return "fat: no emulator"
    sides = []
    for side in ("up", "down"):
        shape = link[side]
        rate = "unlimited" if shape["rate_mbit"] is None else f"{shape['rate_mbit']:g} Mbit/s"
        faults = [f"{shape[key]:g}% {word}" for word in _FAULTS if shape[key := f"{word}_percent"]]
        jitter = [f"{shape['jitter_ms']:g} ms jitter"] if shape["jitter_ms"] else []
        sides.append(f"{side} " + ", ".join([f"{shape['delay_ms']:g} ms", rate, *jitter, *faults]))
    return "; ".join(
        [*sides, f"MTU {link['mtu']}", *(["NAT"] if link["nat"] else []), *(["PEP"] if link["pep"] else [])]
    )


@main.command(context_settings={"allow_interspersed_args": False})
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_lab
@click.option("--user", help="Run as this user, without capabilities.")
@click.option("--unprivileged", is_flag=True, help="Run without any capability.")
def shell(host: str, command: tuple[str, ...], lab_name: str | None, user: str | None, unprivileged: bool) -> None:
    """Run COMMAND on HOST, or a shell. Options come before HOST. What runs there ends with the lab at the latest."""
    argv = list(command[1:] if command[:1] == ("--",) else command) or [os.environ.get("SHELL", "/bin/sh")]
    with _attached(lab_name) as lab:
        # A terminal's Ctrl-C is for the command, which shares the terminal.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        environment = {"MSOCKS_LAB_HOST": f"{lab.name}/{host}"}
        process = lab.host(host).popen(
            argv,
            user=user,
            unprivileged=unprivileged,
            env=environment,
            stdin=0,
            stdout=1,
            stderr=2,
            new_session=False,
        )
        code = process.wait()
    raise SystemExit(code if code >= 0 else 128 - code)


def _report(event: Event, as_json: bool) -> None:
    if as_json:
        _print_json({"action": event.action, "link": event.link, "began": event.began, "done": event.done})
    else:
        click.echo(f"{event.action} {event.link}: done in {(event.done - event.began) * 1000:.1f} ms")


@contextmanager
def _link(lab_name: str | None, name: str) -> Iterator[Link]:
    with _attached(lab_name) as lab:
        yield lab.link(name)


@main.command()
@click.argument("link")
@click.option("--silent", "mode", flag_value="silent", default="silent", help="Packets vanish, nothing else (default).")
@click.option("--carrier", "mode", flag_value="carrier", help="The mobile's interface loses its carrier.")
@click.option("--admin", "mode", flag_value="admin", help="The mobile's interface is set down.")
@click.option("--reset", "mode", flag_value="reset", help="TCP packets are answered with RST, others pass.")
@click.option("--direction", type=click.Choice(["up", "down", "both"]), default="both", help="Of a silent cut.")
@_lab
@_json
def cut(link: str, mode: str, direction: str, lab_name: str | None, as_json: bool) -> None:
    """Let LINK go away; what is under way is lost."""
    with _link(lab_name, link) as target:
        _report(target.cut(CutMode(mode), Direction(direction)), as_json)


def _simple(name: str, method: str, text: str, summary: str | None = None) -> None:
    @main.command(name, help=text, short_help=summary)
    @click.argument("link")
    @_lab
    @_json
    def command(link: str, lab_name: str | None, as_json: bool) -> None:
        with _link(lab_name, link) as target:
            _report(getattr(target, method)(), as_json)


_simple(
    "restore", "restore", "Undo a cut of LINK; its addresses and default routes are there again.", "Undo a cut of LINK."
)
_simple("detach", "detach", "Take the mobile's addresses and routes on LINK away.")
_simple("attach", "attach", "Give the mobile its addresses and routes on LINK.")
_simple(
    "readdress", "readdress", "Give the mobile new addresses on LINK instead of the present ones.", "Change addresses."
)
_simple("nat-rebind", "rebind_nat", "Let the NAT of LINK forget its mappings.")
_simple("log-in", "log_in", "End the captivity of LINK: let everything through again.")


@main.command()
@click.argument("link")
@click.option("--kind", type=click.Choice([kind.value for kind in PortalKind]), default="http", show_default=True)
@click.option("--udp", is_flag=True, help="Answer datagrams too, instead of dropping them.")
@_lab
@_json
def portal(link: str, kind: str, udp: bool, lab_name: str | None, as_json: bool) -> None:
    """Let a captive portal answer every connection on LINK, until `log-in`."""
    with _link(lab_name, link) as target:
        _report(target.portal(PortalKind(kind), udp=udp), as_json)


@main.command("lose-pep")
@click.argument("link")
@click.option("--reset", is_flag=True, help="Tell both ends, instead of nobody.")
@_lab
@_json
def lose_pep(link: str, reset: bool, lab_name: str | None, as_json: bool) -> None:
    """Let the middlebox of LINK forget its connections and the bytes that it holds."""
    with _link(lab_name, link) as target:
        _report(target.lose_pep(reset=reset), as_json)


@main.command("set")
@click.argument("link")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE...")
@_lab
@_json
def set_link(link: str, changes: tuple[str, ...], lab_name: str | None, as_json: bool) -> None:
    """Change properties of LINK while it carries traffic.

    Keys: rtt, delay (one way), rate (Mbit/s or none), queue (ms), queue_bytes, jitter, loss, duplicate, reorder,
    reorder_ms, each also as up.KEY or down.KEY; and mtu.
    """
    with _link(lab_name, link) as target:
        mtu = [change for change in changes if change.startswith("mtu=")]
        shapes = parse_changes([change for change in changes if change not in mtu])
        try:
            size = int(mtu[-1][4:]) if mtu else None
        except ValueError:
            raise click.BadParameter(f"{mtu[-1]} is not a whole number of bytes") from None
        _report(target.change(shapes, size), as_json)


@main.command()
@click.argument("links", nargs=-1, metavar="[LINK]...")
@_lab
@_json
def validate(links: tuple[str, ...], lab_name: str | None, as_json: bool) -> None:
    """Measure links.

    RTT, loss and rate of each LINK, or of all, take about three seconds a link and load it.
    """
    with _told():
        _validate(_choose(lab_name), list(links), as_json)


def _validate(name: str, links: list[str], as_json: bool) -> None:
    with _attached(name) as lab, measurement_lock():
        measured = []
        for link in links or [link.name for link in lab.config.links]:
            found = measure(lab, link)
            measured.append(found)
            if not as_json:
                _print_measurement(lab, found)
        if as_json:
            _print_json({"name": name, "links": [item.to_dict() for item in measured]})


def _print_measurement(lab: Lab, found: LinkMeasurement) -> None:
    wanted = _speed(lab.link(found.link).describe())
    click.echo(
        f"{found.link}: RTT {found.rtt_median_ms} ms ({found.rtt_min_ms}-{found.rtt_max_ms}), "
        f"lost {found.loss_percent}%, {found.down_mbit} Mbit/s down, {found.up_mbit} up  [set: {wanted}]"
    )


@main.command()
@_lab
@click.argument("name", required=False)
def down(name: str | None, lab_name: str | None) -> None:
    """End a lab and everything that runs in it: the one called NAME, else the only one."""
    with _told():
        launch.end(_choose(name or lab_name))


if __name__ == "__main__":
    main()
