"""One host as a test or a person uses it: programs, sockets, captures."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msocks_lab.errors import ProcessFailed
from msocks_lab.process import LabProcess, Output, checked, demoting_argv, entering_argv, environment

if TYPE_CHECKING:
    from msocks_lab.lab import Lab

_POLL = 0.01


class Host:
    """One host of the lab."""

    def __init__(self, lab: Lab, name: str, addresses: tuple[str, ...]) -> None:
        self._lab = lab
        self.name = name
        #: Fixed addresses, IPv4 first; empty for the mobile and the routers.
        self.addresses = addresses

    @property
    def ipv4(self) -> str:
        """The fixed IPv4 address (of the proxy or the server)."""
        return next(address for address in self.addresses if ":" not in address)

    @property
    def ipv6(self) -> str:
        """The fixed IPv6 address (of the proxy or the server)."""
        return next(address for address in self.addresses if ":" in address)

    def argv(self, *, user: str | None = None, unprivileged: bool = False, cwd: str | None = None) -> list[str]:
        """The command line that runs what follows it on this host. It leaves the PID namespace as it is."""
        entering = entering_argv(self._lab.supervisor_pid, self._lab.namespaces(self.name), cwd or str(Path.cwd()))
        return [*entering, *demoting_argv(user, unprivileged)]

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        user: str | None = None,
        unprivileged: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: Output = subprocess.DEVNULL,
        stdout: Output = None,
        stderr: Output = None,
        pass_fds: Sequence[int] = (),
        new_session: bool = True,
    ) -> LabProcess:
        """Start a program on this host.

        `user` runs it as another user, without capabilities; `unprivileged` as the caller without any capability,
        and with none to gain. `env` is added to the caller's environment. Output goes to a log file in the lab's
        `directory` unless it is sent elsewhere. Without `new_session` it shares the caller's terminal.
        """
        words = [os.fspath(word) for word in argv]
        return self._lab.start(
            self.name,
            words,
            prefix=self.argv(user=user, unprivileged=unprivileged, cwd=cwd),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment(env),
            pass_fds=pass_fds,
            start_new_session=new_session,
        )

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float = 60.0,
        check: bool = True,
        input: str | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end with its output captured as text; options as for `popen`.

        Raises ProcessFailed where it takes longer than `timeout` seconds or, with `check`, ends with a code other
        than 0.
        """
        words = [os.fspath(word) for word in argv]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.popen(argv, **{**pipes, **options})
        try:
            out, err = process.communicate(None if input is None else input.encode(), timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            text = (out or b"").decode(errors="replace") + (err or b"").decode(errors="replace")
            raise ProcessFailed(f"{' '.join(words)} took longer than {timeout} s:\n{text[-4000:]}") from None
        done = subprocess.CompletedProcess(
            words, process.returncode, (out or b"").decode(errors="replace"), (err or b"").decode(errors="replace")
        )
        if check:
            checked(done, words, done.stdout + done.stderr)
        return done

    def wait_listening(self, port: int, timeout: float = 10.0, protocol: str = "tcp") -> None:
        """Return when a socket of this host listens on a port ("tcp" or "udp"). Raises ProcessFailed."""
        deadline = time.monotonic() + timeout
        while port not in self._lab.call("listening", host=self.name, protocol=protocol):
            if time.monotonic() > deadline:
                logs = self._lab.logs(self.name)
                raise ProcessFailed(f"Nothing listens on {protocol} port {port} of {self.name}:\n{logs}")
            time.sleep(_POLL)

    def accepted_connections(self) -> int:
        """How many TCP connections this host has accepted since the lab was built (tcpPassiveOpens)."""
        return int(self._lab.call("tcp", host=self.name)["passive_opens"])

    def tcp_sockets(self) -> list[dict[str, Any]]:
        """All TCP sockets of the host, each a `proc_net.SocketEntry` as a dict."""
        return list(self._lab.call("tcp", host=self.name)["sockets"])

    def capture(self, path: Path, expression: str = "", interface: str = "any", snap: int = 0) -> LabProcess:
        """Record packets to a pcap file with tcpdump until the returned process is stopped."""
        argv = [
            "tcpdump",
            "-i",
            interface,
            "-n",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-w",
            str(path),
            "-s",
            str(snap),
        ]
        process = self.popen([*argv, *filter(None, [expression])])
        deadline = time.monotonic() + 5.0
        while "listening on" not in process.output():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed(f"tcpdump does not capture:\n{process.tail()}")
            time.sleep(_POLL)
        return process
