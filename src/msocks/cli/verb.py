"""What all verbs have in common: ``-v``, ``--json``, ``--control``, and help that reads like a manual page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from msocks.cli.exit_status import ExitStatus

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

SCHEMA = 1
"""Of every JSON that a verb prints."""

EXIT_STATUSES: dict[ExitStatus, str] = {
    ExitStatus.OK: "done",
    ExitStatus.FAILED: "what was asked for did not come about; the message says why",
    ExitStatus.USAGE: "the command line cannot be understood",
    ExitStatus.UNREACHABLE: "the agent, or the proxy, does not run or cannot be asked",
    ExitStatus.CONFIGURATION: "a setting, a file or an argument cannot be used as it stands",
    ExitStatus.INTERRUPTED: "interrupted",
}


class Invocation:
    """What holds for one run of the program, whichever verb it is."""

    def __init__(self) -> None:
        self.verbosity = 0

    @property
    def is_verbose(self) -> bool:
        """Whether ``-v`` was given."""
        return self.verbosity >= 1

    @property
    def wants_tracebacks(self) -> bool:
        """Whether ``-v`` was given twice."""
        return self.verbosity >= 2


def _count_verbosity(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    ctx.ensure_object(Invocation).verbosity += value


def write_section(formatter: click.HelpFormatter, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A section of a help text: terms and what they mean."""
    with formatter.section(title):
        formatter.write_dl(rows)


class _Manual(click.Command):
    """Adds ``-v``, and examples and exit statuses at the end of the help."""

    def __init__(
        self,
        *args: Any,
        examples: Sequence[tuple[str, str]] = (),
        exit_statuses: Mapping[ExitStatus, str] = EXIT_STATUSES,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                callback=_count_verbosity,
                help="Say more on standard error; twice: also where in the program an error arose.",
            )
        )
        self._examples = examples
        self._exit_statuses = exit_statuses

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self._examples:
            with formatter.section("Examples"):
                indent = " " * formatter.current_indent
                formatter.write("\n".join(f"{indent}# {purpose}\n{indent}{line}\n" for line, purpose in self._examples))
        write_section(
            formatter, "Exit status", [(f"{status:d}", meaning) for status, meaning in self._exit_statuses.items()]
        )


class Verb(_Manual):
    """A command whose help reads like a manual page."""


class VerbGroup(_Manual, click.Group):
    """A group of them."""

    command_class = Verb


def json_option(function: Decorated) -> Decorated:
    """``--json``, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help='Print JSON; it has "schema": 1.')(function)


def control_option(function: Decorated) -> Decorated:
    """``--control PATH``, passed as `control`."""
    return click.option(
        "--control",
        metavar="PATH",
        help="The agent's control socket. By default $MSOCKS_CONTROL, else $XDG_RUNTIME_DIR/msocks/agent.sock, "
        "/run/msocks/agent.sock (root) or ~/.local/state/msocks/agent.sock.",
    )(function)


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object, with its schema's number first."""
    click.echo(json.dumps({"schema": SCHEMA} | values, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    for row in [headings, *rows]:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
