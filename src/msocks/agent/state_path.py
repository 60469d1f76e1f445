"""Where the agent keeps what outlives it."""

from __future__ import annotations

import os
from pathlib import Path


def default_state_directory() -> Path:
    """``$STATE_DIRECTORY`` (the service manager's), else /var/lib/msocks-agent for root, else ~/.local/state/msocks."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given.startswith("/"):
        return Path(given)
    return Path("/var/lib/msocks-agent") if os.geteuid() == 0 else Path("~/.local/state/msocks").expanduser()
