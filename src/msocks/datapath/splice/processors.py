"""How many processors there can be."""

from __future__ import annotations

from pathlib import Path

_POSSIBLE = Path("/sys/devices/system/cpu/possible")


def processors() -> int:
    """One more than the highest number that a processor of this host can have, present or not."""
    return int(_POSSIBLE.read_text().strip().replace(",", "-").split("-")[-1]) + 1
