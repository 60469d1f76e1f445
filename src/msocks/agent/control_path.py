"""Where the agent's control socket lies. `msocks nc` starts on every ssh and asks here: `os` alone is imported."""

from __future__ import annotations

import os

CONTROL_VARIABLE = "MSOCKS_CONTROL"

RUN_SUFFIX = ".run"
"""The socket where `msocks run` comes lies beside the control socket, with this behind its name."""

SESSIONS_SUFFIX = ".sessions"
"""The file of open sessions lies there too; a file's path has no such limit."""

MAX_PATH_BYTES = 107 - len(RUN_SUFFIX)
"""The size of ``sun_path`` (unix(7)) without the closing zero, and with room for the second socket."""

_NAME = "msocks/agent.sock"


def default_control_paths() -> list[str]:
    """The places where an agent of this user puts its control socket unless told otherwise, the preferred one first.

    ``$XDG_RUNTIME_DIR/msocks/agent.sock`` where that variable is set; then ``/run/msocks/agent.sock`` for root,
    ``~/.local/state/msocks/agent.sock`` for others.
    """
    places = []
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        places.append(os.path.join(runtime, _NAME))  # noqa: PTH118 - pathlib would cost `nc` its quick start
    if os.geteuid() == 0:
        places.append(f"/run/{_NAME}")
    else:
        places.append(os.path.expanduser(f"~/.local/state/{_NAME}"))  # noqa: PTH111
    return places


def find_control_path(given: str | None) -> str:
    """The control socket that a command speaks to: `given`, else ``$MSOCKS_CONTROL``, else the default place.

    Of the default places the first that exists counts: root may have a runtime directory of its own while the agent was
    started by the system.
    """
    chosen = given or os.environ.get(CONTROL_VARIABLE)
    if chosen:
        return chosen
    places = default_control_paths()
    return next((place for place in places if os.path.exists(place)), places[0])  # noqa: PTH110
