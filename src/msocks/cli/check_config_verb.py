"""``msocks check-config``: what is wrong with a configuration file, all of it."""

from __future__ import annotations

from pathlib import Path

import click

from msocks.cli.exit_status import ExitStatus
from msocks.cli.verb import Verb, json_option, print_json


@click.command(
    cls=Verb,
    examples=[
        ("msocks check-config /etc/msocks/agent.toml", "what is wrong with it?"),
        ("msocks check-config proxy.toml && systemctl restart msocks-proxy", "restart only with a file that is right"),
    ],
    exit_statuses={
        ExitStatus.OK: "the file is right",
        ExitStatus.USAGE: "the command line cannot be understood",
        ExitStatus.CONFIGURATION: "the file is wrong or cannot be read; every problem is named",
    },
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@json_option
def check_config(file: Path, as_json: bool) -> ExitStatus:
    """Check the TOML file FILE, which configures an agent ([agent], [policy]), a proxy ([proxy]), transparent mode
    ([transparent]) or several of them.

    The file is checked as a whole, the access link it names included. All problems are printed, each with its key, the
    cause and a suggestion. Nothing is started or changed. docs/reference/configuration.md lists the keys.
    """
    from msocks.cli.configuration.load import Daemon, check_file
    from msocks.cli.configuration.problems import InvalidConfiguration, Problem, problem_lines

    problems: tuple[Problem, ...] = ()
    configures: list[str] = []
    try:
        checked = check_file(file)
        if checked.agent is not None:
            configures.append(Daemon.AGENT)
        if checked.proxy is not None:
            configures.append(Daemon.PROXY)
        if checked.policy is not None:
            configures.append("policy")
        if checked.transparent is not None:
            configures.append("transparent mode")
    except InvalidConfiguration as error:
        problems = error.problems
    if as_json:
        print_json(
            {
                "file": str(file),
                "valid": not problems,
                "configures": configures,
                "problems": [
                    {"key": problem.key, "cause": problem.cause, "suggestion": problem.suggestion}
                    for problem in problems
                ],
            }
        )
    elif problems:
        for problem in problems:
            for line in problem_lines(problem):
                click.echo(line)
    else:
        click.echo(f"{file} is right; it configures the {' and the '.join(configures)}")
    return ExitStatus.CONFIGURATION if problems else ExitStatus.OK
