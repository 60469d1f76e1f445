"""Starting, finding and ending the supervisors of labs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from msocks_lab.config import LabConfig
from msocks_lab.errors import LabError, SetupError
from msocks_lab.namespaces import children_in_pid_namespace
from msocks_lab.process import environment
from msocks_lab.wire import Channel, runtime_root, socket_path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}\Z")
_LONGEST_START = 30.0


def start_supervisor(
    name: str, config: LabConfig, *, tied: bool, log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Build a lab; it runs when this returns. `tied` lets it end with this process. Raises SetupError.

    What the supervisor has to say goes to `log`, by default in the lab's directory below `wire.runtime_root()`.
    """
    if not _NAME.match(name):
        raise SetupError(f"{name!r} cannot name a lab", "Use up to 41 letters, digits, -, _ and .")
    if os.geteuid() != 0:
        raise SetupError("The lab needs root: it makes network namespaces", "Run it with sudo")
    for program in ("nsenter", "setpriv"):
        if shutil.which(program) is None:
            raise SetupError(f"The program `{program}` is missing", "apt-get install util-linux")
    directory = runtime_root() / name
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        if alive(name):
            raise SetupError(f"A lab {name!r} runs already", f"Choose another name, or `msocks-lab down {name}`") from None
        shutil.rmtree(directory)
        directory.mkdir(parents=True)
    log = log or directory / "supervisor.log"
    read, write = os.pipe2(os.O_CLOEXEC)
    owner = os.pidfd_open(os.getpid()) if tied else -1
    try:
        with log.open("ab") as output, children_in_pid_namespace(None):
            process = subprocess.Popen(
                [sys.executable, "-m", "msocks_lab.supervisor", name, str(owner), str(write)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment(None),
                pass_fds=[write, *([owner] if tied else [])],
                start_new_session=True,
            )
        os.close(write)
        assert process.stdin is not None
        process.stdin.write(json.dumps(config.to_dict()).encode())
        process.stdin.close()
        (directory / "pid").write_text(str(process.pid))
        with os.fdopen(read, "rb") as report:
            line = report.readline()
    finally:
        if tied:
            os.close(owner)
    answer: dict[str, Any] = json.loads(line or b"{}")
    if "ready" not in answer:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)
        failure = answer.get("error", {"message": "The lab's supervisor ended", "remedy": log.read_text()[-2000:]})
        raise SetupError(failure["message"], failure["remedy"])
    return process


def alive(name: str) -> bool:
    """Whether a lab of this name runs."""
    try:
        Channel(socket_path(name)).close()
    except LabError:
        return False
    return True


def running() -> list[str]:
    """The names of all labs that run; what dead ones have left behind is removed."""
    root = runtime_root()
    names = []
    for directory in sorted(root.iterdir()) if root.is_dir() else []:
        if alive(directory.name):
            names.append(directory.name)
        elif time.time() - directory.stat().st_mtime > _LONGEST_START:
            shutil.rmtree(directory, ignore_errors=True)
    return names


def end(name: str) -> None:
    """End a lab that `msocks-lab up` has started, and return when nothing of it is left. Raises SetupError."""
    if not alive(name):
        raise SetupError(f"There is no lab {name!r}", "See `msocks-lab list`")
    pid = int((runtime_root() / name / "pid").read_text())
    handle = os.pidfd_open(pid)
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        _wait_readable(handle)
    finally:
        os.close(handle)
    shutil.rmtree(runtime_root() / name, ignore_errors=True)


def _wait_readable(fd: int) -> None:
    import select

    if not select.select([fd], [], [], 10.0)[0]:
        raise SetupError("The lab does not end within 10 s")
