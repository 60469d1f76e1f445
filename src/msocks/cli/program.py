"""The group of all verbs: which there are, how their errors are shown, how they end."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from typing import NamedTuple

import click

import msocks
from msocks.cli.exit_status import ExitStatus
from msocks.cli.verb import EXIT_STATUSES, Invocation, VerbGroup, write_section
from msocks.errors import AgentUnavailable, ConfigurationError, MsocksError


class _Entry(NamedTuple):
    name: str
    place: str  # module:attribute
    purpose: str


_SECTIONS: dict[str, list[_Entry]] = {
    "On a computer that moves": [
        _Entry("agent", "agent_verb:agent", "Run the agent: a local SOCKS5 and HTTP CONNECT port."),
        _Entry("status", "agent_verbs:status", "Show how the agent is doing."),
        _Entry("links", "agent_verbs:links", "List the links: network interfaces and their state."),
        _Entry("flows", "flow_verbs:flows", "List the flows: programs' connections and what carries them."),
        _Entry("move", "flow_verbs:move", "Move a flow, or all of them, to another link."),
        _Entry("run", "run_verb:run", "Run a program whose connections go through the agent."),
        _Entry("transparent", "transparent_verb:transparent", "Take the connections of a whole host, or of a network."),
        _Entry("why", "policy_verbs:why", "Tell which rule decides about a flow, and what else was considered."),
        _Entry("pin", "policy_verbs:pin", "Let a flow use one link and no other."),
        _Entry("unpin", "policy_verbs:unpin", "Let the policy decide about a flow again."),
        _Entry("reload", "policy_verbs:reload", "Have the agent take the policy of its changed file."),
        _Entry("publish", "publish_verb:publish", "Let others reach a local service at the proxy's address."),
        _Entry("nc", "nc_verb:nc", "Open one connection on standard input and output, for ssh."),
    ],
    "On the server": [
        _Entry("proxy", "proxy_verb:proxy", "Run the proxy."),
        _Entry("user", "user_verbs:user", "Add, list and remove the proxy's users."),
        _Entry("sessions", "proxy_verbs:sessions", "List the sessions of the running proxy."),
        _Entry("doctor", "doctor_verb:doctor", "Tell whether this host can splice, and what it lacks."),
    ],
    "Anywhere": [
        _Entry("check-config", "check_config_verb:check_config", "Check a configuration file for agent or proxy."),
    ],
}
_ENTRIES = {entry.name: entry for entries in _SECTIONS.values() for entry in entries}


class _Program(VerbGroup):
    """Loads a verb's module when the verb is called; ``--help`` loads none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _ENTRIES.get(cmd_name)
        if entry is None:
            close = difflib.get_close_matches(cmd_name, _ENTRIES, n=2)
            meant = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"There is no verb {cmd_name!r}.{meant}", ctx)
        module, _, attribute = entry.place.partition(":")
        command = getattr(importlib.import_module(f"msocks.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for title, entries in _SECTIONS.items():
            write_section(formatter, title, [(entry.name, entry.purpose) for entry in entries])


@click.group(
    name="msocks",
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=[
        ("msocks user add alice --state DIR --address proxy.example.net:1080", "on the server: print an access link"),
        ("msocks proxy --listen '[::]:1080' --state DIR", "on the server: run the proxy"),
        ("msocks agent --access-file alice.access", "on the laptop: run the agent"),
        ("curl --proxy socks5h://127.0.0.1:1080 https://server.example/", "a connection that outlives its network"),
        ("sudo msocks run git clone https://server.example/project.git", "any program, with nothing configured in it"),
        ("msocks move all --to usb0", "carry all connections over another link"),
    ],
    exit_statuses=EXIT_STATUSES,
)
@click.version_option(msocks.__version__, "--version", prog_name="msocks", message="%(prog)s %(version)s")
def program() -> None:
    """TCP connections that outlive the network they were opened on.

    An agent on the computer that moves takes connections of ordinary programs; a proxy on a host with a stable address
    makes them to ordinary servers. When the computer changes network, the connections go on, not one byte lost. `msocks
    VERB --help` is the manual page of a verb.
    """


def main(arguments: list[str]) -> int:
    """Run `arguments` and return the exit status. Errors go to stderr; tracebacks of them only with ``-vv``."""
    invocation = Invocation()
    try:
        status = program.main(arguments, prog_name="msocks", standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show()
        return ExitStatus.USAGE
    except (click.Abort, KeyboardInterrupt):
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        # Who read our output has enough. What Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.FAILED
    except MsocksError as error:
        if invocation.wants_tracebacks:
            traceback.print_exc()
        show_error(error)
        return _status_of(error)
    except Exception as error:
        if invocation.wants_tracebacks:
            traceback.print_exc()
        show_error(
            MsocksError(
                f"a fault of msocks itself: {type(error).__name__}: {error}",
                remedy="please report it, with what `msocks -vv ...` shows",
            )
        )
        return ExitStatus.FAILED
    return status if isinstance(status, int) else ExitStatus.OK


def show_error(error: MsocksError) -> None:
    """What happened, and below it what to do."""
    print(f"msocks: {error.what}", file=sys.stderr)
    if error.remedy:
        print(f"        {error.remedy}", file=sys.stderr)


def _status_of(error: MsocksError) -> ExitStatus:
    from msocks.cli.agent_client import AgentRefused
    from msocks.store.running_proxy import ProxyNotRunning

    match error:
        case AgentUnavailable() | ProxyNotRunning():
            return ExitStatus.UNREACHABLE
        case AgentRefused():
            return ExitStatus.FAILED
        case ConfigurationError():
            return ExitStatus.CONFIGURATION
    return ExitStatus.FAILED
