"""`msocks run` on the mobile host, and what is seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bpf_maps import program_exists
from tests.end_to_end.conftest import MSOCKS, Field
from tests.end_to_end.splice_fixtures import FAST, spliced_field

from msocks_lab import LabProcess

PEER_PORT = 9000
"""Of the server that tells each client what address it comes from."""


class Runs:
    """Programs on the mobile host of a lab."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.lab = field.lab
        self.server4, self.server6 = field.lab.server.ipv4, field.lab.server.ipv6

    def argv(self, *words: str) -> list[str]:
        return [MSOCKS, "run", "--control", str(self.field.control), *words]

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``msocks run`` with these options and this program, to its end."""
        return self.lab.mobile.run(self.argv(*words), check=False, timeout=30, **options)

    def popen(self, *words: str, **options: Any) -> LabProcess:
        """The same, started."""
        return self.lab.mobile.popen(self.argv(*words), **options)

    def python(self, script: str, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """A Python program; S4, S6 and PORT are the server's."""
        return self(*options, *self._python(script), **more)

    def python_in_background(self, script: str, *options: str, **more: Any) -> LabProcess:
        """The same, started."""
        return self.popen(*options, *self._python(script), **more)

    def _python(self, script: str) -> list[str]:
        known = f"import errno, os, socket, sys, time\nS4, S6, PORT = {self.server4!r}, {self.server6!r}, {PEER_PORT}\n"
        return [sys.executable, "-c", known + script]

    def keepers(self) -> dict[int, list[int]]:
        """The keepers of this lab's runs: process number, and the ids of the BPF programs that it holds."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                is_run = b"run" in words and str(self.field.control).encode() in words
                # A process that has yet to become its program is still where it was started.
                if is_run and (process / "cwd").readlink() == Path("/"):
                    lines = [each.read_text() for each in (process / "fdinfo").iterdir()]
                    found[int(process.name)] = [int(each) for each in re.findall(r"prog_id:\t(\d+)", "".join(lines))]
        return found

    def until(self, condition: Any, what: str, timeout: float = 10.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.02)

    def until_nothing_is_left(self, programs: list[int], group: Path) -> None:
        self.until(lambda: not self.keepers(), "a keeper is left")
        self.until(lambda: not any(program_exists(each) for each in programs), "a BPF program is left")
        self.until(lambda: not group.exists(), "a control group is left")


@contextlib.contextmanager
def runs_in_lab() -> Iterator[Runs]:
    with spliced_field(*FAST) as field:
        server = field.lab.server
        script = Path(__file__).with_name("peer_server.py")
        for address in (server.ipv4, server.ipv6):
            server.popen([sys.executable, str(script), address, str(PEER_PORT)])
        server.wait_listening(PEER_PORT)
        field.wait_until(lambda: all(link["rtt_ms"] is not None for link in links(field)))
        runs = Runs(field)
        yield runs
        runs.until(lambda: not runs.keepers(), "a keeper is left")  # killed with the lab, it would leave its group


def links(field: Field) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(field.msocks("links", "--json").stdout)["links"]
    return found


@pytest.fixture(scope="module")
def ran() -> Iterator[Runs]:
    """One lab for all tests of a module."""
    with runs_in_lab() as runs:
        yield runs
