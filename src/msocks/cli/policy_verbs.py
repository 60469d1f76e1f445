"""``msocks why``, ``msocks pin``, ``msocks unpin`` and ``msocks reload``."""

from __future__ import annotations

from typing import Any

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.verb import EXIT_STATUSES, Verb, control_option, json_option, print_json

_MOST_RULES_SHOWN = 10


@click.command(
    cls=Verb,
    examples=[
        ("msocks why 3fa9c1d2", "which rule decides about that flow, and what about the other links?"),
        ("msocks why 3fa9c1d2 --json | jq -r .rule", "the name of the rule"),
    ],
)
@click.argument("flow", metavar="FLOW")
@control_option
@json_option
def why(flow: str, control: str | None, as_json: bool) -> None:
    """Tell which rule of the policy decides about FLOW, and what else was considered.

    FLOW is an id as `msocks flows` shows it, or the beginning of one. Every link is listed with what the rule saw of
    it, or why the flow may not use it; then the rules before the one that decided, with what did not fit.
    """
    from msocks.cli.agent_client import AgentClient

    answer = AgentClient(control).why(flow)
    if as_json:
        print_json(answer)
    else:
        for line in _why_lines(answer):
            click.echo(line)


@click.command(
    cls=Verb,
    examples=[
        ("msocks pin 3fa9c1d2 --to usb0", "carry that flow over usb0 and over nothing else"),
        ("msocks pin all --to wlan0", "the same for every flow that there is"),
    ],
)
@click.argument("flow", metavar="FLOW")
@click.option("--to", "link", metavar="LINK", required=True, help="The link's name, as `msocks links` shows it.")
@control_option
@json_option
def pin(flow: str, link: str, control: str | None, as_json: bool) -> None:
    """Let FLOW use one link and no other, whatever the policy says.

    FLOW is an id as `msocks flows` shows it, or the beginning of one; or `all`. The command returns at once; the flow
    moves as soon as it can. Where the link is lost the flow waits for it. A pin goes before every rule, before roles
    and data caps as well; `msocks unpin` takes it away.
    """
    from msocks.cli.agent_client import AgentClient

    answer = AgentClient(control).pin(flow, link)
    _show(answer, f"pinned to {link}", as_json)


@click.command(
    cls=Verb,
    examples=[
        ("msocks unpin 3fa9c1d2", "let the policy decide again"),
        ("msocks unpin all", "about every flow"),
    ],
)
@click.argument("flow", metavar="FLOW")
@control_option
@json_option
def unpin(flow: str, control: str | None, as_json: bool) -> None:
    """Let the policy decide about FLOW again, after `msocks pin` or `msocks move`.

    FLOW is an id as `msocks flows` shows it, or the beginning of one; or `all`. A flow that is neither pinned nor moved
    stays as it is.
    """
    from msocks.cli.agent_client import AgentClient

    _show(AgentClient(control).unpin(flow), "decided by the policy", as_json)


@click.command(
    cls=Verb,
    examples=[
        ("msocks reload", "take the policy of the changed file"),
        ("msocks check-config agent.toml && msocks reload", "look for mistakes first"),
    ],
    exit_statuses={
        **EXIT_STATUSES,
        ExitStatus.OK: "the new policy holds",
        ExitStatus.CONFIGURATION: "the file is wrong; every problem is named, and the old policy stays",
    },
)
@control_option
@json_option
def reload(control: str | None, as_json: bool) -> ExitStatus:
    """Have the agent read its configuration file again and use the policy in it.

    Flows for which nothing changes are not touched; the others move, and none is broken. A file with a mistake is
    refused as a whole. What else has changed in the file counts from the next start on, and is named.
    """
    from msocks.cli.agent_client import AgentClient, ConfigurationRefused

    try:
        answer = AgentClient(control).reload()
    except ConfigurationRefused as refused:
        if as_json:
            error = {"what": refused.what, "remedy": refused.remedy}
            print_json({"loaded": False, "error": error, "problems": refused.problems})
            return ExitStatus.CONFIGURATION
        click.echo(f"msocks: {refused.what}", err=True)
        for problem in refused.problems:
            key = f"{problem['key']}: " if problem["key"] else ""
            click.echo(f"  {key}{problem['cause']}\n      {problem['suggestion']}", err=True)
        click.echo(f"        {refused.remedy}", err=True)
        return ExitStatus.CONFIGURATION
    if as_json:
        print_json({"loaded": True} | {key: value for key, value in answer.items() if key != "schema"})
        return ExitStatus.OK
    click.echo(
        f"{_count(answer['rules'], 'rule')}; another one decides about {_count(answer['changed_flows'], 'flow')}"
    )
    if answer["needs_restart"]:
        click.echo(f"changed as well, and used from the agent's next start on: {', '.join(answer['needs_restart'])}")
    return ExitStatus.OK


def _show(answer: dict[str, Any], outcome: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    elif not answer["flows"]:
        click.echo("no flows", err=True)
    else:
        for flow in answer["flows"]:
            click.echo(f"{flow['id']}  {outcome}")


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _why_lines(answer: dict[str, Any]) -> list[str]:
    known = [f"{name} {value}" for name, value in answer["flow"].items() if value is not None]
    lines = [
        f"{answer['id']}  {answer['destination']}  {answer['state']} on {answer['link'] or '-'}"
        + (f"  ({', '.join(known)})" if known else "")
    ]
    match answer["decided_by"]:
        case "pin":
            lines.append(f"pinned: {answer['pinned']} and no other link")
        case "rule":
            lines.append(f"rule {answer['rule']!r} decides")
        case _:
            lines.append("no rule matches: the links in their order")
    match answer["action"]:
        case "use":
            lines.append(f"goes to {answer['order'][0]}" + "".join(f", then {each}" for each in answer["order"][1:]))
        case "wait":
            lines.append("waits: there is no link that it may use now")
        case other:
            lines.append(f"is to be ended ({other})")
    lines += [f"  {link['name']:<15}  {_verdict(link)}: {link['reason']}" for link in answer["links"]]
    passed = answer["passed_over"]
    lines += [
        f"  rule {each['rule']!r} does not match: {', '.join(each['does_not_fit'])}"
        for each in passed[:_MOST_RULES_SHOWN]
    ]
    if len(passed) > _MOST_RULES_SHOWN:
        lines.append(f"  {len(passed) - _MOST_RULES_SHOWN} more rules do not match (--json has all)")
    also = answer["also_matching"]
    if also:
        more = ", ..." if len(also) > _MOST_RULES_SHOWN else ""
        lines.append(f"  would match, but come later: {', '.join(also[:_MOST_RULES_SHOWN])}{more}")
    return lines


def _verdict(link: dict[str, Any]) -> str:
    if not link["allowed"]:
        return "may not use"
    return "may use" if link["usable"] else "cannot use"
