"""``msocks nc`` where it is not the first word (``msocks -v nc ...``): hands on to `msocks.cli.nc`."""

from __future__ import annotations

import click

from msocks.cli import nc as netcat
from msocks.cli.verb import Invocation


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def nc(invocation: Invocation, arguments: tuple[str, ...]) -> int:
    """Open one connection on standard input and output."""
    return netcat.main([*(["-v"] if invocation.is_verbose else []), *arguments])
