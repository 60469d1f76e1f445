"""A wall clock that can be set for some programs alone, as NTP or a person sets it; the monotonic one goes on.

By libfaketime (Debian's package), which is loaded into them and reads how far to shift from a file.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.world import BenchmarkError

_LIBRARIES = "/usr/lib"
_NAME = "*/faketime/libfaketime.so.1"


class SteppedClock:
    """Programs run by `wrapper` see it. Raises BenchmarkError where libfaketime is not installed."""

    def __init__(self, file: Path) -> None:
        found = next(Path(_LIBRARIES).glob(_NAME), None)
        if found is None:
            raise BenchmarkError("libfaketime is missing: apt-get install faketime, or make install")
        self._file = file
        self._shift = 0.0
        self._write()
        self.wrapper = [
            "env",
            f"LD_PRELOAD={found}",
            f"FAKETIME_TIMESTAMP_FILE={file}",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "FAKETIME_CACHE_DURATION=1",
        ]

    def step(self, seconds: float) -> None:
        """Set the clock forward or back; noticed within a second."""
        self._shift += seconds
        self._write()

    def _write(self) -> None:
        # Renamed into place: a program that reads meanwhile finds the whole of it.
        partial = self._file.with_suffix(".part")
        partial.write_text(f"{self._shift:+.0f}\n")
        partial.rename(self._file)
