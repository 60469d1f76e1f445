"""``msocks publish``: others reach a service of this host at the proxy."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.parameters import ENDPOINT, links_option
from msocks.cli.verb import EXIT_STATUSES, SCHEMA, Invocation, Verb
from msocks.values.endpoint import Endpoint

if TYPE_CHECKING:
    from msocks.client.events import Event
    from msocks.client.published_service import Accepted
    from msocks.values.access_link import AccessLink


class _ServiceParameter(click.ParamType[Endpoint]):
    """``PORT`` of this host, or ``HOST:PORT``."""

    name = "SERVICE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = f"127.0.0.1:{value}"
        service = ENDPOINT.convert(value, param, ctx)
        if not service.port:
            self.fail("a service's port is a number from 1 to 65535", param, ctx)
        return service


@click.command(
    cls=Verb,
    examples=[
        ("msocks publish 22 --at 2222", "ssh -p 2222 to the proxy reaches this host"),
        ("msocks publish 8000", "any port that the proxy's operator lets this user have"),
        ("msocks publish '[::1]:8000' --at 8080 --link wlan0 --link wwan0", "prefer wlan0, then wwan0, use no other"),
        ("msocks publish 22 --json | jq --unbuffered .event", "what happens, for a program"),
    ],
    exit_statuses={
        ExitStatus.OK: "stopped by SIGTERM or SIGINT",
        ExitStatus.FAILED: "the proxy gives no such port, or has taken it back; the message says why",
        ExitStatus.USAGE: "the command line cannot be understood",
        ExitStatus.CONFIGURATION: EXIT_STATUSES[ExitStatus.CONFIGURATION],
    },
)
@click.argument("service", metavar="SERVICE", type=_ServiceParameter())
@click.option(
    "--at",
    "port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="The proxy's port at which others connect. By default any that the proxy's operator lets this user have.",
)
@click.option(
    "--access-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File that holds the access link, the one line that `msocks user add` printed. By default the one that "
    "$MSOCKS_ACCESS_FILE names.",
)
@links_option
@click.option("--json", "as_json", is_flag=True, help='Print each line as a JSON object; it has "schema": 1.')
@click.pass_obj
def publish(
    invocation: Invocation,
    service: Endpoint,
    port: int | None,
    access_file: Path | None,
    links: tuple[str, ...],
    as_json: bool,
) -> None:
    """Let others reach a local service at the proxy's stable address, until SIGTERM or SIGINT.

    SERVICE is a port of this host, or HOST:PORT of a host that this one reaches. Whoever connects to the proxy's port
    is connected to it; each such connection outlives a change of network like any other. It needs no agent, no
    privilege, and no address that others could reach. The service sees connections from this host, not from who really
    connects.

    The first line is `published`, with the proxy's address as far as the proxy knows it. Then comes one for each
    connection that is accepted, moves, is parked (no network), is resumed or ends. After a change of network, or a
    restart of the proxy, the port is asked for again.

    Who may have which ports is said in the table [proxy.publish] of the proxy's configuration; without it nobody may.
    At the end, connections that are left are reset.
    """
    import asyncio

    from msocks.cli.log_setup import configure_log
    from msocks.client.access import resolve_access

    access = resolve_access(access_file)
    configure_log(verbose=invocation.is_verbose)
    asyncio.run(_publish(access, service, port or 0, links, _Printer(as_json)))


class _Printer:
    """A line for each event."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def published(self, service: Endpoint, at: Endpoint) -> None:
        self._print(f"published  {service} at {at}", event="published", service=str(service), at=str(at))

    def report(self, session: str, event: Accepted | Event) -> None:
        from msocks.client.events import Ended, Moved, Parked, Resumed

        news: str
        more: dict[str, Any]
        match event:
            case Moved(from_link, to_link, cause):
                news = f"{from_link} -> {to_link} ({cause})"
                more = {"event": "moved", "from": from_link, "to": to_link, "cause": str(cause)}
            case Parked():
                news, more = "parked", {"event": "parked"}
            case Resumed(link):
                news, more = f"live on {link}", {"event": "resumed", "link": link}
            case Ended(error):
                news = "ended" if error is None else f"ended: {error.what}"
                said = None if error is None else {"what": error.what, "remedy": error.remedy}
                more = {"event": "ended", "error": said}
            case accepted:
                news = f"accepted from {accepted.peer} on {accepted.link}"
                more = {"event": "accepted", "peer": str(accepted.peer), "link": accepted.link}
        self._print(f"{session[:8]}  {news}", session=session, **more)

    def _print(self, text: str, **values: Any) -> None:
        now = datetime.now().astimezone()
        if self._as_json:
            click.echo(json.dumps({"schema": SCHEMA, "time": now.timestamp()} | values))
        else:
            click.echo(f"{now.strftime('%H:%M:%S.%f')[:-3]}  {text}")


async def _publish(access: AccessLink, service: Endpoint, port: int, links: tuple[str, ...], printer: _Printer) -> None:
    import asyncio
    import contextlib
    import signal

    from msocks.client.node import MobileNode
    from msocks.client.published_service import PublishedService
    from msocks.transport.descriptor_limit import raise_descriptor_limit

    raise_descriptor_limit()  # each connection needs two, three while it moves
    node = MobileNode(access, links=links or None, agent_name="msocks publish")
    await node.start()

    async def serve() -> None:
        published = PublishedService(node, port, service, printer.report)
        printer.published(service, await published.opened())
        await published.serve()

    serving = asyncio.create_task(serve())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    finally:
        await node.close()
