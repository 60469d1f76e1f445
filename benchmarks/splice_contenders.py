"""What stands in the middle in `make bench-splice`: the kernel's IP forwarding, MSOCKS, or another proxy.

Each is started on the host in the middle of a `DirectNetwork`, and stopped so that nothing of it is left there: IP
forwarding is measured without a trace of the others.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from benchmarks.direct_network import MOBILE_SIDE, MOBILE_SUBNETS, SERVER_SIDE, SERVER_SUBNETS, DirectNetwork
from benchmarks.machine import tree
from benchmarks.world import MSOCKS, options, start_ready
from msocks_lab import LabProcess

PING_PONG_PORT, BULK_PORT, SESSIONS_PORT = 9000, 9001, 9100
SESSION_SERVERS = 8
"""Servers of idle sessions, on ports from SESSIONS_PORT: each holds at most 20,000 descriptors."""
SESSIONS_EACH = 15_000
"""Idle sessions toward one of them, of one client program."""
SERVER_PORTS = (PING_PONG_PORT, BULK_PORT, *range(SESSIONS_PORT, SESSIONS_PORT + SESSION_SERVERS))

ONE_PROCESSOR = ("taskset", "--cpu-list", "0")

_PORT = 1080
_MANY = SESSION_SERVERS * SESSIONS_EACH
_FAMILIES = (4, 6)
_PINS = Path("/sys/fs/bpf/msocks")
_DANTE = """\
logoutput: stderr
internal: {mobile_side} port = {port}
external: {server_side}
socksmethod: none
clientmethod: none
user.privileged: root
user.notprivileged: nobody
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 command: connect }}
"""
_HAPROXY = """\
global
    maxconn 9500
    maxpipes 200
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    option splice-request
    option splice-response
    option tcp-smart-connect
"""


@dataclass(frozen=True, slots=True)
class Way:
    """Where a client connects: `targets` (addresses of one family) at `port`, through the SOCKS5 server if any."""

    targets: tuple[str, ...]
    port: int
    socks: str | None  # ADDRESS/PORT

    @property
    def first(self) -> str:
        """One target, as the programs in C take it."""
        return f"{self.targets[0]}/{self.port}"

    @property
    def every(self) -> str:
        """All targets, as the programs in C take them."""
        return ",".join(f"{target}/{self.port}" for target in self.targets)

    @property
    def proxy(self) -> str:
        """The SOCKS5 server, as the programs in C take it."""
        return self.socks or "-"


class Contender(ABC):
    """A way through the middle. Use it as a context: it runs inside, on one processor where it is `pinned`."""

    name: str
    title: str
    most_sessions = 1_000_000
    """More idle sessions than that it cannot hold: 20,000 descriptors a process, or all of the machine's memory."""

    def __init__(self, network: DirectNetwork, datapath: str, *, pinned: bool = False) -> None:
        self.network = network
        self.datapath = datapath
        self._prefix = ONE_PROCESSOR if pinned else ()
        self.process: LabProcess | None = None

    @property
    def pids(self) -> list[int]:
        """Its processes, as far as it has any."""
        return tree([self.process.pid]) if self.process is not None else []

    def __enter__(self) -> Contender:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start it; ready when this returns. Raises BenchmarkError, LabError."""

    def stop(self) -> None:
        """Leave nothing of it in the middle."""
        if self.process is not None:
            self.process.stop()

    def way(self, family: int, port: int) -> Way:
        """How to get to a port of the server."""
        return Way(tuple(self.network.destinations(family)), port, self._socks(family))

    def _socks(self, family: int) -> str | None:
        return f"{self.network.proxy_address(family)}/{_PORT}"

    def _popen(self, *argv: str, stdout: int | None = None) -> LabProcess:
        """Start a program in the middle; where it is pinned, all that it forks is, too."""
        return self.network.lab.proxy.popen([*self._prefix, *argv], stdout=stdout)

    def _listening(self) -> None:
        self.network.lab.proxy.wait_listening(_PORT)


class Forwarding(Contender):
    """The kernel of the host in the middle, as a router."""

    name = "forwarding"
    title = "IP forwarding"

    def start(self) -> None:
        """Nothing to do: the network forwards."""

    def _socks(self, family: int) -> str | None:
        return None


class Msocks(Contender):
    """`msocks proxy --open` for plain SOCKS5."""

    name = "msocks"
    title = "MSOCKS"

    def __init__(self, network: DirectNetwork, datapath: str, *, pinned: bool = False) -> None:
        super().__init__(network, datapath, pinned=pinned)
        if datapath == "relay":
            self.most_sessions = 9000

    def start(self) -> None:
        self.state = self.network.lab.directory / f"state-{self.name}"
        allowed = options("--allow", [*MOBILE_SUBNETS, *SERVER_SUBNETS])
        where = ["--listen", f"[::]:{_PORT}", "--state", str(self.state)]
        argv = [MSOCKS, "proxy", "--open", "--datapath", self.datapath, *where, *allowed, *self._limits()]
        self.process = start_ready(self._popen(*argv, stdout=subprocess.PIPE))

    def _limits(self) -> list[str]:
        """Options that raise its limits: none are."""
        return []

    @property
    def pins(self) -> Path:
        """Where the maps and programs of its datapath are pinned, if it has any."""
        return _PINS / hashlib.sha256(str(self.state.resolve()).encode()).hexdigest()[:16]

    def stop(self) -> None:
        super().stop()
        # What the splice leaves so that sessions outlive the daemon; here nothing may.
        lab = self.network.lab
        lab.proxy.run(["nft", "delete", "table", "inet", f"msocks_{self.pins.name}"], check=False)
        lab.proxy.run(["rm", "-rf", str(self.pins)])
        for interface in lab.proxy.run(["ls", "/sys/class/net"]).stdout.split():
            lab.proxy.run(["tc", "qdisc", "del", "dev", interface, "clsact"], check=False)


class MsocksOfMany(Msocks):
    """The same, allowed to hold more sessions than it may by default."""

    def _limits(self) -> list[str]:
        configuration = self.network.lab.directory / f"{self.name}.toml"
        configuration.write_text(f"[proxy.limits]\nsessions = {_MANY}\n")
        return ["--config", str(configuration)]


class Beside(Msocks):
    """IP forwarding through a host that splices other connections: what the hooks cost packets that are not theirs."""

    name = "beside"
    title = "IP forwarding beside MSOCKS"

    def _socks(self, family: int) -> str | None:
        return None


class Dante(Contender):
    """Dante's server, a pool of processes."""

    name = "dante"
    title = "dante"
    most_sessions = 1000

    def start(self) -> None:
        lab = self.network.lab
        configuration = lab.directory / "danted.conf"
        sides = {"mobile_side": MOBILE_SIDE, "server_side": SERVER_SIDE}
        configuration.write_text(_DANTE.format(port=_PORT, **sides))
        argv = [shutil.which("danted") or "/usr/sbin/danted", "-f", str(configuration)]
        self.process = self._popen(*argv, "-p", str(lab.directory / "danted.pid"))
        self._listening()


class Microsocks(Contender):
    """A small SOCKS5 server in C, one thread for each connection."""

    name = "microsocks"
    title = "microsocks"
    most_sessions = 9000

    def start(self) -> None:
        self.process = self._popen("microsocks", "-i", "::", "-p", str(_PORT))
        self._listening()


class Haproxy(Contender):
    """haproxy as a plain TCP proxy with its splice(2) forced; it has no SOCKS, and each of its ports one server's."""

    name = "haproxy"
    title = "haproxy (no SOCKS)"
    most_sessions = 9000

    def start(self) -> None:
        lab = self.network.lab
        parts = [_HAPROXY]
        for family in _FAMILIES:
            for port in SERVER_PORTS:
                parts.append(f"listen v{family}-{port}\n    bind {self.network.proxy_address(family)}:{port}\n")
                for number, address in enumerate(self.network.destinations(family)):
                    parts.append(f"    server s{number} {address}:{port}\n")
        configuration = lab.directory / "haproxy.cfg"
        configuration.write_text("".join(parts))
        argv = [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", str(configuration)]
        self.process = self._popen(*argv)
        lab.proxy.wait_listening(SERVER_PORTS[-1])

    def way(self, family: int, port: int) -> Way:
        return Way((self.network.proxy_address(family),), port, None)


CONTENDERS: tuple[type[Contender], ...] = (Forwarding, Msocks, Beside, Dante, Microsocks, Haproxy)
