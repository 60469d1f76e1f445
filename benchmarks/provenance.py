"""Where a result comes from: commit, date, machine, versions, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_OWN_OUTPUT = "docs/benchmarks"


def _said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """The commit that is checked out; `+` after it says that tracked or new files differ from it."""
    changed = _said("git", "status", "--porcelain", "--", ":/", f":(exclude){_OWN_OUTPUT}")
    return _said("git", "rev-parse", "HEAD") + ("+" if changed else "")


def debian_version(package: str) -> str:
    """The version of an installed Debian package."""
    return _said("dpkg-query", "--show", "--showformat=${Version}", package)


def provenance(versions: dict[str, str]) -> dict[str, Any]:
    """Everything about the run that is not a figure; `versions` names the programs that were compared with."""
    arguments = " ".join(sys.argv[1:])
    program = Path(sys.argv[0]).resolve()
    if program.is_relative_to(ROOT):
        program = program.relative_to(ROOT)
    return {
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"PYTHONPATH=. .venv/bin/python {program} {arguments}".strip(),
        "kernel": platform.release(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "versions": {
            "msocks": version("msocks"),
            "Python": platform.python_version(),
            "uvloop": version("uvloop"),
            **versions,
        },
    }


def python_version(package: str) -> str:
    """The version of an installed Python package."""
    return version(package)
