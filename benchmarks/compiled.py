"""The programs in C that a benchmark measures with, compiled when they are needed: `benchmarks/c/NAME.c`.

What a round trip of 20 microseconds costs cannot be told by a program in Python, which takes as long itself.
"""

from __future__ import annotations

import shutil
import subprocess

from benchmarks.provenance import ROOT
from benchmarks.world import BenchmarkError

_SOURCES = ROOT / "benchmarks" / "c"
_BUILT = ROOT / "build" / "benchmarks"
_OPTIONS = ("-O2", "-Wall", "-Wextra", "-Werror")


def program(name: str) -> str:
    """The path of such a program, newer than its source. Raises BenchmarkError where it cannot be compiled."""
    source, built = _SOURCES / f"{name}.c", _BUILT / name
    newest = max(path.stat().st_mtime for path in (source, *_SOURCES.glob("*.h")))
    if built.exists() and built.stat().st_mtime > newest:
        return str(built)
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise BenchmarkError("No C compiler was found; on Debian: apt-get install gcc libc6-dev")
    _BUILT.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([compiler, *_OPTIONS, "-o", built, source], check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{source.name} cannot be compiled:\n{done.stderr}")
    return str(built)
