"""Starting, finding and ending the supervisors of labs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from msocks_lab.config import LabConfig
from msocks_lab.errors import SetupError
from msocks_lab.namespaces import children_in_pid_namespace
from msocks_lab.process import python_argv
from msocks_lab.wire import runtime_root

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}\Z")
_LONGEST_CLAIM = 2.0  # seconds between the making of the directory and the writing of the number
_LONGEST_END = 10.0
_NO_OWNER = -1


def start_supervisor(name: str, config: LabConfig, *, tied: bool, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Build a lab; it runs when this returns. `tied` lets it end with this process. Raises SetupError.

    What the supervisor has to say goes to `log`, by default in the lab's directory below `wire.runtime_root()`.
    """
    _check_prerequisites(name)
    directory = _claim(name)
    log = log or directory / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    process: subprocess.Popen[bytes] | None = None
    read, write = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(read, "rb") as report:
        try:
            try:
                process = _spawn(name, write, log, tied)
            finally:
                os.close(write)
            _pid_file(name).write_text(str(process.pid))
            assert process.stdin is not None
            with process.stdin as configuration:
                configuration.write(json.dumps(config.to_dict()).encode())
            answer: dict[str, Any] = json.loads(report.readline() or b"{}")
            if "ready" in answer:
                return process
            failure = answer.get("error", {"message": "The lab's supervisor ended", "remedy": log.read_text()[-2000:]})
            raise SetupError(failure["message"], failure["remedy"])
        except BaseException:
            if process is not None:
                process.kill()
                process.wait()
            shutil.rmtree(directory, ignore_errors=True)
            raise


def _check_prerequisites(name: str) -> None:
    if not _NAME.match(name):
        raise SetupError(f"{name!r} cannot name a lab", "Use up to 41 letters, digits, -, _ and .")
    if os.geteuid() != 0:
        raise SetupError("The lab needs root: it makes network namespaces", "Run it with sudo")
    for program in ("nsenter", "setpriv"):
        if shutil.which(program) is None:
            raise SetupError(f"The program `{program}` is missing", "apt-get install util-linux")


def _claim(name: str) -> Path:
    """The new lab's directory, made by this call alone."""
    directory = runtime_root() / name
    if directory.exists() and not alive(name):
        shutil.rmtree(directory)
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        remedy = f"Choose another name, or `msocks-lab down {name}`"
        raise SetupError(f"A lab {name!r} runs already", remedy) from None
    return directory


def _spawn(name: str, report: int, log: Path, tied: bool) -> subprocess.Popen[bytes]:
    with contextlib.ExitStack() as stack:
        owner = os.pidfd_open(os.getpid()) if tied else _NO_OWNER
        if tied:
            stack.callback(os.close, owner)
        output = stack.enter_context(log.open("ab"))
        stack.enter_context(children_in_pid_namespace(None))
        return subprocess.Popen(
            [*_command_line(name), str(owner), str(report)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[report, *([owner] if tied else [])],
            start_new_session=True,
        )


def _command_line(name: str) -> list[str]:
    return python_argv("msocks_lab.supervisor", name)


def _pid_file(name: str) -> Path:
    return runtime_root() / name / "pid"


def supervisor_pid(name: str) -> int:
    """The process number of a lab's supervisor, as this process sees it. Raises SetupError where there is none."""
    return _find_supervisor(name)[0]


def is_tied(name: str) -> bool:
    """Whether a lab ends with the process that built it. Raises SetupError where there is none."""
    return _find_supervisor(name)[1] != str(_NO_OWNER)


def _find_supervisor(name: str) -> tuple[int, str]:
    """The supervisor's process number and its OWNER_PIDFD."""
    expected = _command_line(name)
    try:
        pid = int(_pid_file(name).read_text())
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (OSError, ValueError):
        words = []
    # The number of one that was killed may belong to somebody else by now.
    if words[1 : len(expected)] != expected[1:]:
        raise SetupError(f"There is no lab {name!r}", "See `msocks-lab list`; start one with `msocks-lab up`")
    return pid, words[len(expected)]


def alive(name: str) -> bool:
    """Whether a lab of this name runs or starts."""
    try:
        supervisor_pid(name)
    except SetupError:
        with contextlib.suppress(FileNotFoundError):
            claimed = time.time() - (runtime_root() / name).stat().st_mtime < _LONGEST_CLAIM
            return claimed and not _pid_file(name).exists()
        return False
    return True


def running() -> list[str]:
    """The names of all labs that run; what dead ones have left behind is removed."""
    root = runtime_root()
    names = []
    for directory in sorted(root.iterdir()) if root.is_dir() else []:
        if alive(directory.name):
            names.append(directory.name)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return names


def end(name: str) -> None:
    """End a lab, and return when nothing of it is left. Raises SetupError where there is none."""
    handle = os.pidfd_open(supervisor_pid(name))
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], _LONGEST_END)[0]:
            raise SetupError("The lab does not end", "Another process has yet to wait for its children in the lab")
    finally:
        os.close(handle)
    shutil.rmtree(runtime_root() / name, ignore_errors=True)
