"""Words for what is known of a path, and for what it costs to know more."""

from __future__ import annotations

from enum import Enum, Flag, StrEnum


class PathState(StrEnum):
    """What is known of a path."""

    UNPROVEN = "unproven"
    """Nothing has arrived yet."""
    ALIVE = "alive"
    """Something has arrived, and nothing speaks against it."""
    SILENT = "silent"
    """Probes stay unanswered and nothing else arrives."""


class Means(Flag):
    """What to ask with."""

    NOTHING = 0
    UDP = 1
    """A UDP probe."""
    CONTROL = 2
    """A ping on the control channel."""


class Tariff(Enum):
    """What asking costs."""

    FREE = "free"
    METERED = "metered"
