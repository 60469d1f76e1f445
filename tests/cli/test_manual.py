"""Every verb's help reads like a manual page, and starts quickly."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests.cli.conftest import CommandLine

import msocks as package
from msocks.cli.program import program

ROOT = Path(__file__).parents[2]
VERBS = [
    "proxy", "agent", "status", "links", "flows", "move", "why", "pin", "unpin", "reload", "run", "transparent",
    "publish", "nc", "user", "sessions", "doctor", "check-config",
]  # fmt: skip
USER_VERBS = ["add", "list", "remove", "password"]

# Beyond click, what a command line loads is paid at every start.
HEAVY = {"asyncio", "cryptography", "h11", "pydantic", "pyroute2", "segno", "sqlite3", "structlog", "uvloop"}


def test_the_program_lists_every_verb(msocks: CommandLine):
    text = msocks("--help").stdout
    for verb in VERBS:
        assert f"\n  {verb} " in text, verb
    assert msocks("-h").stdout == text


@pytest.mark.parametrize("verb", [*([name] for name in VERBS), *(["user", name] for name in USER_VERBS)], ids=" ".join)
def test_help_has_a_purpose_examples_and_exit_statuses(msocks: CommandLine, verb: list[str]):
    done = msocks(*verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: msocks {' '.join(verb)} ")
    for part in ("Options:\n", "Examples:\n", "Exit status:\n", "--help"):
        assert part in done.stdout, part
    if verb not in (["nc"], ["user"]):
        assert f"msocks {' '.join(verb)}" in done.stdout.partition("Examples:")[2]


def test_the_options_that_others_rely_on_exist(msocks: CommandLine):
    wanted = {
        "proxy": ["--listen", "--state", "--allow", "--deny", "--open", "--datapath", "--config"],
        "agent": ["--access-file", "--config", "--listen", "--link", "--control"],
        "user add": ["--state", "--address", "--qr"],
        "sessions": ["--state", "--json"],
        "status": ["--control", "--json"],
        "flows": ["--control", "--json"],
        "links": ["--control", "--json"],
        "move": ["--to", "--control", "--json"],
        "why": ["--control", "--json"],
        "pin": ["--to", "--control", "--json"],
        "unpin": ["--control", "--json"],
        "reload": ["--control", "--json"],
        "nc": ["--control"],
        "run": [
            "--via",
            "--link",
            "--prefer",
            "--on-loss",
            "--tag",
            "--exclude",
            "--dns",
            "--no-udp",
            "--user",
            "--control",
        ],
        "publish": ["--at", "--access-file", "--link", "--json"],
        "doctor": ["--json", "--discard-splice-state"],
        "check-config": ["--json"],
    }
    for verb, options in wanted.items():
        text = msocks(*verb.split(), "--help").stdout
        assert [option for option in options if f"{option} " not in text] == [], verb


def command_lines_of_the_manual() -> Iterator[list[str]]:
    """What follows `msocks` in each command of README and docs that somebody might copy."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for kind, block in re.findall(r"^ *```(sh|console)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in re.sub(r"\\\n *", " ", block).splitlines():
                if kind == "console" and not line.startswith("$ "):
                    continue
                words = shlex.split(line, comments=True)
                for program_at, word in enumerate(words):
                    if word in ("msocks", "$(command -v msocks)") and words[program_at + 1] != "--":  # runuser's -u
                        rest = words[program_at + 1 :]
                        ends = [number for number, each in enumerate(rest) if each in ("|", ">", "&&", ";")]
                        yield rest[: ends[0] if ends else None]
                        break


def test_every_command_of_the_manual_is_understood():
    count = 0
    for line in command_lines_of_the_manual():
        command: click.Command = program
        arguments = line
        while isinstance(command, click.Group) and not arguments[0].startswith("-"):
            found = command.get_command(click.Context(command), arguments[0])
            assert found is not None, line
            command, arguments = found, arguments[1:]
        parser = command.make_parser(click.Context(command, **command.context_settings))
        try:
            parser.parse_args([*arguments])
        except click.UsageError as error:
            pytest.fail(f"msocks {shlex.join(line)}: {error.message}")
        count += 1
    assert count > 40


def test_version_and_verbosity(msocks: CommandLine):
    assert msocks("--version").stdout == f"msocks {package.__version__}\n"
    assert msocks("-v", "--version").returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["flows", "--help"], ["status", "--control", "/nonexistent"]])
def test_what_is_not_needed_is_not_loaded(arguments: list[str]):
    report = (
        "import sys\nfrom msocks.cli.program import main\n"
        f"main({arguments!r})\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=30, check=True)
    assert not HEAVY & set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["flwos"], "Did you mean flows?"),
        (["move", "all"], "Missing option '--to'"),
        (["agent"], "Give --access-file FILE or --config FILE."),
        (["proxy", "--listen", "127.0.0.1:0"], "--state DIR"),
        (["proxy", "--listen", "::1:80", "--state", "s"], "in brackets"),
        (["proxy", "--listen", "127.0.0.1:0", "--state", "s", "--allow", "10.1.2.3/8"], "10.0.0.0/8"),
        (["publish", "0"], "1 to 65535"),
        (["publish", "[::1"], "write [address]:port"),
        (["nc", "server.example"], "usage: msocks nc"),
        (["nc", "server.example", "http"], "port number"),
        (["nc", "server.example\r\nX: y", "80"], "host name"),
        (["nc", "--contol", "x", "server.example", "80"], "--contol"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_status_2_and_says_what_to_do(
    msocks: CommandLine, arguments: list[str], remedy: str
):
    done = msocks(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert remedy in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["flows"],
        ["links"],
        ["move", "all", "--to", "lo"],
        ["why", "ab"],
        ["reload"],
        ["nc", "a.example", "22"],
    ],
)
def test_no_agent_is_status_3_and_says_what_to_do(msocks: CommandLine, arguments: list[str]):
    verb, *rest = arguments
    done = msocks(verb, "--control", "/nonexistent/agent.sock", *rest)
    assert (done.returncode, done.stdout) == (3, "")
    assert "/nonexistent/agent.sock" in done.stderr
    assert "msocks agent --access-file" in done.stderr


def test_the_control_socket_is_found_by_option_then_variable_then_default(msocks: CommandLine):
    msocks.environment["XDG_RUNTIME_DIR"] = "/nonexistent/runtime"
    assert "/nonexistent/runtime/msocks/agent.sock" in msocks("status").stderr
    msocks.environment["MSOCKS_CONTROL"] = "/nonexistent/variable"
    for verb in (["status"], ["nc", "a.example", "22"]):
        assert "/nonexistent/variable" in msocks(*verb).stderr
    assert "/nonexistent/option" in msocks("status", "--control", "/nonexistent/option").stderr
