"""A lab as its user sees it: build it, run programs on its hosts, disturb its links, look at it from outside.

    with Lab(LabConfig([LinkConfig("wifi", rtt_ms=5, rate_mbit=50), LinkConfig("lte", rtt_ms=50)])) as lab:
        lab.server.popen(["nginx", "-c", "/tmp/nginx.conf"])
        lab.server.wait_listening(80)
        lab.mobile.run(["curl", "http://server/"])
        lab.link("wifi").cut(CutMode.SILENT)

The programs run as children of this process, in the lab's namespaces.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msocks_lab.config import LabConfig
from msocks_lab.errors import SetupError
from msocks_lab.host import Host
from msocks_lab.launch import start_supervisor, supervisor_pid
from msocks_lab.link import Event, Link
from msocks_lab.process import LabProcess
from msocks_lab.wire import Channel, runtime_root, socket_path

_counter = itertools.count(1)


class Lab:
    """A lab that lives as long as the `with` block, and no longer than this process.

    `directory` gets the logs of the programs, and outlives the lab; without one they are in a directory that goes
    with the lab. Raises SetupError where the lab cannot be built.
    """

    def __init__(self, config: LabConfig, *, name: str | None = None, directory: Path | None = None) -> None:
        self.config = config
        self.name = name or f"{os.getpid()}-{next(_counter)}"
        self.directory = directory or runtime_root() / self.name / "programs"
        self._processes: list[LabProcess] = []
        self._log_numbers = itertools.count(1)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None

    def __enter__(self) -> Self:
        log = self.directory / "supervisor.log"
        self._supervisor = start_supervisor(self.name, self.config, tied=True, log=log)
        try:
            self._connect(self._supervisor.pid)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            sys.stderr.write(self.logs())
        self.close()

    @classmethod
    def attach(cls, name: str) -> Self:
        """A lab that runs already, for example one from `msocks-lab up`; it goes on after `close`.

        Raises SetupError where there is none.
        """
        pid = supervisor_pid(name)
        channel = Channel(socket_path(name))
        config = LabConfig.from_dict(channel.call("describe")["config"])
        channel.close()
        lab = cls(config, name=name)
        lab.directory = runtime_root() / name / f"programs-{os.getpid()}-{next(_counter)}"
        lab.directory.mkdir()
        lab._connect(pid)
        return lab

    def _connect(self, pid: int) -> None:
        self.supervisor_pid = pid
        self._pid_namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._channel = Channel(socket_path(self.name))
        self._described = self.call("describe")

    def close(self) -> None:
        """Stop the programs started through this object, and end the lab or, after `attach`, let go of it."""
        if self._supervisor is not None:
            self._supervisor.kill()
            for process in self._processes:
                process.end()  # the kernel has killed it; the lab is gone when everybody in it has been waited for
            self._supervisor.wait()
            shutil.rmtree(runtime_root() / self.name, ignore_errors=True)
            self._supervisor = None
        else:
            for process in self._processes:
                process.stop()
                process.end()
            shutil.rmtree(self.directory, ignore_errors=True)
        if self._channel is not None:
            self._channel.close()
            os.close(self._pid_namespace)
            self._channel = None

    def call(self, name: str, **arguments: Any) -> Any:
        """Ask the supervisor. See `supervisor.Supervisor`."""
        if self._channel is None:
            raise SetupError(f"Lab {self.name} is not up", "Use it inside its `with` block")
        return self._channel.call(name, **arguments)

    def namespaces(self, host: str) -> dict[str, int]:
        """The supervisor's descriptors of a host's namespaces, "net" and "mnt"."""
        try:
            return dict(self._described["hosts"][host])
        except KeyError:
            known = ", ".join(self._described["hosts"])
            raise SetupError(f"The lab has no host {host!r}", f"Its hosts: {known}") from None

    def start(self, host: str, argv: Sequence[str], *, prefix: Sequence[str], **options: Any) -> LabProcess:
        """Start a program; use `Host.popen`."""
        log = self.directory / f"{next(self._log_numbers):03}-{host}-{Path(argv[0]).name}.log"
        process = LabProcess([*prefix, *argv], host=host, pid_namespace=self._pid_namespace, log=log, **options)
        self._processes.append(process)
        return process

    def logs(self, host: str | None = None) -> str:
        """The ends of the logs of all programs, or of those on one host."""
        chosen = [process for process in self._processes if host in (None, process.host)]
        parts = []
        for process in chosen:
            state = "running" if process.poll() is None else f"ended with {process.returncode}"
            if text := process.tail():
                parts.append(f"--- {process.log.name} ({state})\n{text}\n")
        return "".join(parts)

    def host(self, name: str) -> Host:
        """A host: mobile, proxy, server, core, or radio-LINK. Raises SetupError."""
        self.namespaces(name)
        return Host(self, name, tuple(self._described["wired"].get(name, ())))

    @property
    def hosts(self) -> list[str]:
        """The names of all hosts."""
        return list(self._described["hosts"])

    @property
    def mobile(self) -> Host:
        """The host with the links."""
        return self.host("mobile")

    @property
    def proxy(self) -> Host:
        """The host for the proxy."""
        return self.host("proxy")

    @property
    def server(self) -> Host:
        """The host for servers."""
        return self.host("server")

    def link(self, name: str) -> Link:
        """One uplink. Raises SetupError."""
        if name not in [link.name for link in self.config.links]:
            known = ", ".join(link.name for link in self.config.links) or "none"
            raise SetupError(f"The lab has no link {name!r}", f"Its links: {known}")
        return Link(self, name)

    @property
    def links(self) -> list[Link]:
        """All uplinks, in order."""
        return [Link(self, link.name) for link in self.config.links]

    def add_name(self, name: str, *addresses: str) -> None:
        """Let all hosts find a name in their /etc/hosts."""
        with (runtime_root() / self.name / "hosts").open("a") as file:
            file.writelines(f"{address} {name}\n" for address in addresses)

    def events(self) -> list[Event]:
        """All changes of links so far."""
        return [Event(**event) for event in self.call("events")]
