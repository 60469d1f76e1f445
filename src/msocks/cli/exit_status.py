"""The exit statuses of every verb."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    """What was asked for did not come about; the message says why."""
    USAGE = 2
    """The command line cannot be understood."""
    UNREACHABLE = 3
    """The agent, or the proxy on this host, is not running or cannot be asked."""
    CONFIGURATION = 4
    """A setting, a file or an argument cannot be used as it stands."""
    INTERRUPTED = 130
    """Ended by SIGINT (128 + 2, as shells count)."""
