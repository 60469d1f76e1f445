"""Runs the program as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.agent_lab import AgentLab, RunningAgent, agent_lab

MSOCKS = [sys.executable, "-m", "msocks"]


class CommandLine:
    """Runs ``msocks`` in a directory of its own, without the environment's idea of where an agent is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            name: value for name, value in os.environ.items() if name not in ("MSOCKS_CONTROL", "XDG_RUNTIME_DIR")
        }
        # Help is wrapped to the terminal; a broken line would hide a phrase from a test.
        self.environment["COLUMNS"] = "100"

    def __call__(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*MSOCKS, *arguments],
            cwd=self.directory,
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def msocks(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentLab]:
    """Mobile host with two fast links, proxy host with a running proxy, server host."""
    with agent_lab(tmp_path_factory.mktemp("lab")) as built:
        yield built


@pytest.fixture(scope="module")
def agent(lab: AgentLab) -> RunningAgent:
    """An agent that the proxy has accepted."""
    running = lab.start_agent("main")
    running.wait_authorised()
    return running
