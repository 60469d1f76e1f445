"""Programs that run on a host of the lab."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from msocks_lab.errors import ProcessFailed, SetupError
from msocks_lab.namespaces import children_in_pid_namespace

_TAIL = 4000

Output = int | IO[Any] | None


class LabProcess(subprocess.Popen[bytes]):
    """A `subprocess.Popen` whose program runs on a host of the lab; it dies with the lab at the latest.

    `pid` is the number outside the lab. Output that was not sent elsewhere is in the file `log`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        host: str,
        pid_namespace: int,
        log: Path,
        stdout: Output = None,
        stderr: Output = None,
        **options: Any,
    ) -> None:
        self.host = host
        self.log = log
        with contextlib.ExitStack() as stack:
            if stdout is None or stderr is None:
                file = stack.enter_context(log.open("ab"))
                stdout = file if stdout is None else stdout
                stderr = file if stderr is None else stderr
            stack.enter_context(children_in_pid_namespace(pid_namespace))
            try:
                super().__init__(argv, stdout=stdout, stderr=stderr, **options)
            except OSError as error:
                if error.errno != errno.ENOMEM:  # what the kernel says of a PID namespace without process 1
                    raise
                raise SetupError("The lab has ended", "Build a new one; supervisor.log tells why") from error

    def output(self) -> str:
        """What the log holds so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self) -> str:
        """The end of the log, for a message."""
        return self.output()[-_TAIL:]

    def stop(self, timeout: float = 5.0) -> int:
        """SIGTERM, after `timeout` seconds SIGKILL; the exit code."""
        if self.poll() is None:
            self.terminate()
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.wait()

    def end(self) -> None:
        """Wait for the end, and close the pipes."""
        self.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def entering_argv(supervisor: int, namespaces: Mapping[str, int], directory: str) -> list[str]:
    """The command line that runs what follows it in a host's namespaces. nsenter(1) becomes it without a fork."""
    paths = {kind: f"/proc/{supervisor}/fd/{fd}" for kind, fd in namespaces.items()}
    return ["nsenter", f"--net={paths['net']}", f"--mount={paths['mnt']}", f"--wdns={directory}", "--"]


def demoting_argv(user: str | None, unprivileged: bool) -> list[str]:
    """The command line that takes privilege away from what follows it."""
    argv = []
    if user is not None:
        argv += [f"--reuid={user}", "--regid=" + str(_primary_group(user)), "--clear-groups"]
    if unprivileged or user is not None:
        argv += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    return ["setpriv", *argv, "--"] if argv else []


def _primary_group(user: str) -> int:
    import pwd

    try:
        return pwd.getpwnam(user).pw_gid
    except KeyError:
        raise SetupError(f"There is no user {user!r}", "Name one of /etc/passwd, for example nobody") from None


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """The caller's environment with additions."""
    return {**os.environ, **(extra or {})}


def python_argv(module: str, *arguments: str) -> list[str]:
    """The command line of a module, run by this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def checked(process: LabProcess | subprocess.CompletedProcess[Any], argv: Sequence[str], output: str) -> None:
    """Raise ProcessFailed where a program ended with a code other than 0."""
    if process.returncode != 0:
        raise ProcessFailed(f"{' '.join(argv)} ended with {process.returncode}:\n{output[-_TAIL:]}")
