"""A lab as its user sees it: build it, run programs on its hosts, disturb its links, look at it from outside.

    with Lab(LabConfig([LinkConfig("wifi", rtt_ms=5, rate_mbit=50), LinkConfig("lte", rtt_ms=50, rate_mbit=20)])) as lab:
        lab.server.popen(["nginx", "-c", "/tmp/nginx.conf"])
        lab.server.wait_listening(80)
        lab.mobile.run(["curl", "http://server/"])
        lab.link("wifi").cut(CutMode.SILENT)
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msocks_lab.config import CutMode, Direction, LabConfig
from msocks_lab.errors import ProcessFailed, SetupError
from msocks_lab.launch import start_supervisor
from msocks_lab.process import LabProcess, Output, checked, demoting_argv, entering_argv, environment
from msocks_lab.wire import Channel, runtime_root, socket_path

_POLL = 0.01
_counter = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a link. `began` and `done` are seconds of CLOCK_MONOTONIC: the change took effect in between."""

    action: str
    link: str
    arguments: Mapping[str, Any]
    began: float
    done: float


@dataclass(frozen=True, slots=True)
class LinkCounters:
    """Bytes and packets that crossed the mobile's interface: IP packets and 14 bytes of Ethernet header each."""

    bytes_up: int
    bytes_down: int
    packets_up: int
    packets_down: int

    def since(self, earlier: LinkCounters) -> LinkCounters:
        """What has been added since an earlier reading."""
        return LinkCounters(
            self.bytes_up - earlier.bytes_up,
            self.bytes_down - earlier.bytes_down,
            self.packets_up - earlier.packets_up,
            self.packets_down - earlier.packets_down,
        )


class Link:
    """One uplink of the mobile. What changes it returns the Event; CommandError where its state does not allow it."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name

    def _act(self, action: str, **arguments: Any) -> Event:
        return Event(**self._lab.call("act", action=action, link=self.name, arguments=arguments))

    def cut(self, mode: CutMode = CutMode.SILENT, direction: Direction = Direction.BOTH) -> Event:
        """Let the link go away. Only a silent cut can be one-way. What is under way is lost in every mode."""
        return self._act("cut", mode=mode.value, direction=direction.value)

    def restore(self) -> Event:
        """Undo a cut; carrier, addresses and default routes are there again when it returns."""
        return self._act("restore")

    def detach(self) -> Event:
        """Take the mobile's addresses and routes away; the interface stays up."""
        return self._act("detach")

    def attach(self) -> Event:
        """Give the mobile its addresses and routes."""
        return self._act("attach")

    def readdress(self) -> Event:
        """Replace the mobile's addresses on this link by new ones."""
        return self._act("readdress")

    def rebind_nat(self) -> Event:
        """Let the link's NAT forget its mappings: UDP gets a new port, established TCP connections are dead."""
        return self._act("rebind_nat")

    def set(self, direction: Direction = Direction.BOTH, mtu: int | None = None, **shape: float | None) -> Event:
        """Change fields of `Shape` in one or both directions (`rtt_ms` for half of it each way), or the path's MTU."""
        if "rtt_ms" in shape:
            shape["delay_ms"] = (shape.pop("rtt_ms") or 0.0) / 2
        return self.change({direction.value: shape} if shape else {}, mtu)

    def change(self, changes: Mapping[str, Mapping[str, float | None]], mtu: int | None = None) -> Event:
        """The same with changes of several directions at once, as `config.parse_changes` gives them."""
        return self._act("change", changes=changes, mtu=mtu)

    def counters(self) -> LinkCounters:
        """What has crossed the mobile's interface so far."""
        seen = self._lab.call("counters", link=self.name)["interface"]
        return LinkCounters(seen["tx_bytes"], seen["rx_bytes"], seen["tx_packets"], seen["rx_packets"])

    def emulator_counters(self) -> dict[str, dict[str, int]]:
        """The `shaping.PipeCounters` of "up" and "down". Raises SetupError for a fat link."""
        counters = self._lab.call("counters", link=self.name)["emulator"]
        if counters is None:
            raise SetupError(f"{self.name} is fat: it has no emulator", "Build the lab without `fat`")
        return dict(counters)

    def describe(self) -> dict[str, Any]:
        """State, addresses and shapes at present."""
        found: list[dict[str, Any]] = self._lab.call("describe")["links"]
        return next(link for link in found if link["name"] == self.name)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The mobile's present addresses on this link, IPv4 first."""
        return tuple(self.describe()["addresses"])


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
    ) -> LabProcess:
        """Start a program on this host.

        `user` runs it as another user, without capabilities; `unprivileged` as the caller without any capability,
        and with none to gain. `env` is added to the caller's environment. Output goes to a log file in the lab's
        `directory` unless it is sent elsewhere.
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
        argv = ["tcpdump", "-i", interface, "-n", "-U", "-Z", "root", "-w", str(path), "-s", str(snap)]
        process = self.popen([*argv, *filter(None, [expression])])
        deadline = time.monotonic() + 5.0
        while "listening on" not in process.output():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed(f"tcpdump does not capture:\n{process.tail()}")
            time.sleep(_POLL)
        return process


class Lab:
    """A lab that lives as long as the `with` block, and no longer than this process.

    `directory` gets the logs of the programs; without one they are in a temporary directory, which goes with the
    lab. Raises SetupError where the lab cannot be built.
    """

    def __init__(self, config: LabConfig, *, name: str | None = None, directory: Path | None = None) -> None:
        self.config = config
        self.name = name or f"{os.getpid()}-{next(_counter)}"
        self._wanted_directory = directory
        self._processes: list[LabProcess] = []
        self._log_numbers = itertools.count(1)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._opened = False

    def __enter__(self) -> Self:
        self._temporary = None if self._wanted_directory else tempfile.mkdtemp(prefix="msocks-lab-")
        self.directory = self._wanted_directory or Path(self._temporary or "")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            log = self.directory / "supervisor.log"
            self._supervisor = start_supervisor(self.name, self.config, log=log, tied=True)
            self._connect(self._supervisor.pid)
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt | GeneratorExit):
            sys.stderr.write(self.logs())
        self._tear_down()

    @classmethod
    def attach(cls, name: str) -> Self:
        """A lab that runs already, for example one from `msocks-lab up`; it goes on after `close`."""
        channel = Channel(socket_path(name))
        described = channel.call("describe")
        channel.close()
        lab = cls(LabConfig.from_dict(described["config"]), name=name)
        lab._temporary = tempfile.mkdtemp(prefix="msocks-lab-")
        lab.directory = Path(lab._temporary)
        lab._connect(int((runtime_root() / name / "pid").read_text()))
        return lab

    def _connect(self, supervisor_pid: int) -> None:
        self.supervisor_pid = supervisor_pid
        self._channel = Channel(socket_path(self.name))
        self._described = self.call("describe")
        self._pid_namespace = os.open(f"/proc/{supervisor_pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._opened = True

    def close(self) -> None:
        """Stop the programs started through this object and let go of the lab."""
        self._tear_down()

    def _tear_down(self) -> None:
        if self._supervisor is not None:
            self._supervisor.kill()
        for process in self._processes:
            # In a lab of our own the kernel has killed them; until they are waited for the lab cannot end.
            if self._supervisor is None:
                process.stop()
            process.wait()
        if self._supervisor is not None:
            self._supervisor.wait()
            shutil.rmtree(runtime_root() / self.name, ignore_errors=True)
        if self._opened:
            self._channel.close()
            os.close(self._pid_namespace)
            self._opened = False
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def call(self, name: str, **arguments: Any) -> Any:
        """Ask the supervisor. See `supervisor.Supervisor`."""
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
        return "".join(
            f"--- {process.log.name} ({'running' if process.poll() is None else process.returncode})\n{process.tail()}\n"
            for process in chosen
            if process.output()
        )

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

    def events(self) -> list[Event]:
        """All changes of links so far."""
        return [Event(**event) for event in self.call("events")]
