"""``msocks status`` and ``msocks links``: how the agent and its links are doing."""

from __future__ import annotations

from typing import Any

import click

from msocks.cli.verb import Verb, control_option, json_option, print_json, print_table


@click.command(
    cls=Verb,
    examples=[
        ("msocks status", "how is the agent doing?"),
        ("msocks status --json | jq -e .authorised", "has the proxy accepted us? (exit status 0: yes)"),
    ],
)
@control_option
@json_option
def status(control: str | None, as_json: bool) -> None:
    """Show how the agent is doing.

    The version of the agent, where programs find it, the proxy and whether it has accepted the agent (if not: why, and
    what to do), the links, and how many flows there are in which state.
    """
    from msocks.cli.agent_client import AgentClient

    answer = AgentClient(control).status()
    if as_json:
        print_json(answer)
    else:
        for name, text in _lines(answer):
            click.echo(f"{name:<10}{text}")


@click.command(
    cls=Verb,
    examples=[
        ("msocks links", "which networks does the agent see, and how far is the proxy?"),
        ("msocks links --json | jq -r '.links[] | select(.state == \"up\").name'", "the names of those that are up"),
    ],
)
@control_option
@json_option
def links(control: str | None, as_json: bool) -> None:
    """List the links: network interfaces that can carry flows, the preferred one first.

    STATE is `up`; `down` (no carrier, no address or no route); `silent` (it looks up, but nothing comes back); or
    `captive` (something on the way answers in the proxy's place). RTT is the round-trip time to the proxy in
    milliseconds, `-` as long as nothing was answered. LOSS is what was lost of late of what was sent, as probes and the
    flows' retransmissions tell. FLOWS is how many flows the link carries now. Lines below the table say what is wrong
    with a link, or odd about it, and what to do.
    """
    from msocks.cli.agent_client import AgentClient

    found = AgentClient(control).links()
    if as_json:
        print_json({"links": found})
    elif not found:
        click.echo("no link: no network interface has a route to the proxy", err=True)
    else:
        rows = [
            (
                str(link["name"]),
                str(link["state"]),
                "-" if link["rtt_ms"] is None else f"{link['rtt_ms']:.1f} ms",
                "-" if link["loss_percent"] is None else f"{link['loss_percent']:.1f} %",
                str(link["flows"]),
            )
            for link in found
        ]
        print_table(("NAME", "STATE", "RTT", "LOSS", "FLOWS"), rows)
        for link in found:
            for line in _remarks(link):
                click.echo(line)


def _remarks(link: dict[str, Any]) -> list[str]:
    remarks = []
    if link["problem"] is not None:
        remarks += [link["problem"]["what"], f"  {link['problem']['remedy']}"]
    if link["middlebox"]:
        remarks.append(
            f"a middlebox on {link['name']} acknowledges in the proxy's place (PEP): bytes count as delivered only "
            "when the proxy says so"
        )
    return remarks


def _lines(answer: dict[str, Any]) -> list[tuple[str, str]]:
    from msocks.cli.readable import duration

    problem = answer["problem"]
    if answer["authorised"]:
        proxy = f"{answer['proxy'][0]}, as {answer['user']}"
    elif problem is None:
        proxy = f"{answer['proxy'][0]}: not reached yet"
    else:
        proxy = f"{answer['proxy'][0]}: {problem['what']}"
    lines = [
        ("agent", f"{answer['version']}, pid {answer['pid']}, up {duration(answer['uptime_s'])}"),
        ("listens", ", ".join(answer["listen"])),
        ("proxy", proxy),
    ]
    if problem is not None and problem["remedy"]:
        lines.append(("", problem["remedy"]))
    links = [f"{name} {state}" for name, state in answer["links"].items()]
    flows = [f"{count} {state}" for state, count in answer["flows"].items() if count]
    return [*lines, ("links", ", ".join(links) or "none"), ("flows", ", ".join(flows) or "none")]
