"""How the lab's users speak with its supervisor: lines of JSON over a Unix socket, one answer for each call.

Call: {"call": NAME, "arguments": {...}}. Answer: {"result": ...} or {"error": {"message": ..., "remedy": ...}}.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from msocks_lab.errors import CommandError, SetupError


def runtime_root() -> Path:
    """The directory with one directory per running lab: $MSOCKS_LAB_RUN, or /run/msocks-lab."""
    return Path(os.environ.get("MSOCKS_LAB_RUN", "/run/msocks-lab"))


def socket_path(name: str) -> Path:
    """Where the supervisor of a lab listens."""
    return runtime_root() / name / "control"


def scratch_directory() -> Path:
    """Where files go that belong to no single lab."""
    return Path("/run/lock") if os.access("/run/lock", os.W_OK) else Path(tempfile.gettempdir())


class Channel:
    """A caller's connection to a supervisor. Threads may share it."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise SetupError(
                f"No lab answers at {path}: {error.strerror}", "See `msocks-lab list`; start one with `msocks-lab up`"
            ) from error
        self._reader = self._socket.makefile("rb")

    def call(self, name: str, **arguments: Any) -> Any:
        """Ask and wait for the answer. Raises CommandError where the lab refuses, SetupError where it is gone."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps({"call": name, "arguments": arguments}).encode() + b"\n")
                answer = self._reader.readline()
        except OSError as error:
            raise SetupError(f"The lab does not answer `{name}`: {error}") from error
        if not answer:
            raise SetupError(f"The lab ended during `{name}`", "Its last words are in supervisor.log")
        decoded: dict[str, Any] = json.loads(answer)
        if "error" in decoded:
            raise CommandError(decoded["error"]["message"], decoded["error"]["remedy"])
        return decoded["result"]

    def close(self) -> None:
        """Hang up."""
        self._reader.close()
        self._socket.close()
