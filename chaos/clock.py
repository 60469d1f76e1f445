"""A wall clock that can be set for some programs alone, as NTP or a person sets it; the monotonic one goes on."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from benchmarks.provenance import ROOT
from benchmarks.world import BenchmarkError

_SOURCE = ROOT / "chaos" / "c" / "stepped_clock.c"
_COMPILER = ("clang-19", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


class SteppedClock:
    """Programs run by `wrapper` see it. `directory` gets what is preloaded into them, and the file that it reads.

    Raises BenchmarkError where that cannot be compiled.
    """

    def __init__(self, directory: Path) -> None:
        library, self._file = directory / "stepped_clock.so", directory / "clock"
        built = subprocess.run([*_COMPILER, "-o", library, _SOURCE], capture_output=True, text=True, check=False)
        if built.returncode:
            raise BenchmarkError(f"{_SOURCE.name} cannot be compiled: {built.stderr}")
        self._shift = 0
        self._write()
        self.wrapper = ["env", f"LD_PRELOAD={library}", f"STEPPED_CLOCK={self._file}"]

    def step(self, seconds: float) -> None:
        """Set the clock forward or back, at once."""
        self._shift += int(seconds)
        self._write()

    def _write(self) -> None:
        # In place: the programs have it mapped.
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", self._shift))
