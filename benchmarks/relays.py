"""What stands between a client and a server in `make bench-relay`: nothing, MSOCKS, or programs that do as much."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod

from benchmarks import world
from benchmarks.world import AGENT_PORT, OPEN_PORT
from msocks_lab import Lab, LabProcess
from msocks_lab.process import python_argv

_PPROXY_PORT = 1083
_DANTE_PORT = 1084
_DANTE = """\
logoutput: stderr
internal: eth0 port = {port}
external: eth0
socksmethod: none
clientmethod: none
user.privileged: root
user.notprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 command: connect }}
"""


def _pproxy(*arguments: str) -> list[str]:
    return python_argv("benchmarks.pproxy_on_uvloop", *arguments)


class Relay(ABC):
    """A way from the lab's mobile host to its server.

    `socks` is where the mobile's clients find it, None where they go straight; `processes` has its programs by the
    part that they play, "proxy" and "agent".
    """

    name: str
    title: str
    socks: str | None = None

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.processes: dict[str, LabProcess] = {}

    @abstractmethod
    def start(self) -> None:
        """Start it; ready when this returns."""


class Forwarding(Relay):
    """Routers alone."""

    name = "forwarding"
    title = "IP forwarding"

    def start(self) -> None:
        """Nothing to do: the lab's routers forward."""


class MsocksProxy(Relay):
    """`msocks proxy --open` for plain SOCKS5."""

    name = "msocks-proxy"
    title = "MSOCKS proxy alone (plain SOCKS5)"

    def start(self) -> None:
        self.processes["proxy"] = world.start_open_proxy(self.lab)
        self.socks = f"{self.lab.proxy.ipv4}:{OPEN_PORT}"


class Pproxy(Relay):
    """pproxy on uvloop."""

    name = "pproxy"
    title = "pproxy"

    def start(self) -> None:
        self.processes["proxy"] = self.lab.proxy.popen(_pproxy("-l", f"socks5://0.0.0.0:{_PPROXY_PORT}"))
        self.lab.proxy.wait_listening(_PPROXY_PORT)
        self.socks = f"{self.lab.proxy.ipv4}:{_PPROXY_PORT}"


class Dante(Relay):
    """Dante's server, a pool of processes."""

    name = "dante"
    title = "dante"

    def start(self) -> None:
        configuration = self.lab.directory / "danted.conf"
        configuration.write_text(_DANTE.format(port=_DANTE_PORT))
        argv = [shutil.which("danted") or "/usr/sbin/danted", "-f", str(configuration)]
        self.processes["proxy"] = self.lab.proxy.popen([*argv, "-p", str(self.lab.directory / "danted.pid")])
        self.lab.proxy.wait_listening(_DANTE_PORT)
        self.socks = f"{self.lab.proxy.ipv4}:{_DANTE_PORT}"


class MsocksAgent(Relay):
    """`msocks agent` on the mobile host and `msocks proxy`."""

    name = "msocks-agent"
    title = "MSOCKS agent and proxy"

    def start(self) -> None:
        product = world.start_product(self.lab)
        product.wait_links([link.name for link in self.lab.links])
        self.processes |= {"proxy": product.proxy, "agent": product.agent}
        self.socks = f"127.0.0.1:{AGENT_PORT}"


class PproxyChain(Pproxy):
    """One pproxy on the mobile host that goes through another."""

    name = "pproxy-chain"
    title = "two chained pproxy"

    def start(self) -> None:
        super().start()
        local = f"socks5://127.0.0.1:{_PPROXY_PORT}"
        self.processes["agent"] = self.lab.mobile.popen(_pproxy("-l", local, "-r", f"socks5://{self.socks}"))
        self.lab.mobile.wait_listening(_PPROXY_PORT)
        self.socks = f"127.0.0.1:{_PPROXY_PORT}"


RELAYS: tuple[type[Relay], ...] = (Forwarding, MsocksProxy, Pproxy, Dante, MsocksAgent, PproxyChain)
