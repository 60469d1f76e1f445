"""What is put to the test of a moving network: MSOCKS, and MPTCP from end to end."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence

from benchmarks import world
from benchmarks.world import AGENT_PORT, BenchmarkError, Product
from msocks_lab import Lab, LabProcess
from msocks_lab.process import python_argv

_MPTCPIZE = ("mptcpize", "run")


class Contender(ABC):
    """A way to carry one TCP connection between the lab's mobile host and its server."""

    name: str
    title: str

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @abstractmethod
    def start(self, links: Sequence[str]) -> None:
        """Start everything; ready to use these links when it returns, others may come later."""

    @abstractmethod
    def transfer(self, *arguments: str) -> LabProcess:
        """Start a `bulk_client` whose connection is carried."""

    @abstractmethod
    def check(self) -> str:
        """After the transfer: what shows that the connection was not carried as it should have been, or nothing."""


class Msocks(Contender):
    """Through agent and proxy."""

    name = "msocks"
    title = "MSOCKS"
    product: Product

    def start(self, links: Sequence[str]) -> None:
        world.start_pattern_server(self.lab)
        self.product = world.start_product(self.lab, datapath="splice")
        self.product.wait_links(links)
        self._accepted = self.lab.server.accepted_connections()

    def transfer(self, *arguments: str) -> LabProcess:
        return world.bulk_client(self.lab, "--socks", f"127.0.0.1:{AGENT_PORT}", *arguments)

    def move(self, link: str) -> None:
        """`msocks move` for the one flow there is. Raises BenchmarkError where it fails."""
        done = self.product.msocks("move", "all", "--to", link)
        if done.returncode:
            raise BenchmarkError(f"msocks move ended with {done.returncode}: {done.stderr.strip()}")

    def check(self) -> str:
        accepted = self.lab.server.accepted_connections() - self._accepted
        return "" if accepted == 1 else f"the server accepted {accepted} connections for one session"


class Mptcp(Contender):
    """MPTCP on both hosts, by `mptcpize`; a network manager keeps one endpoint for each link that is up."""

    lte_flags = ""

    def start(self, links: Sequence[str]) -> None:
        # The server takes every subflow; the mobile's limits are the network manager's work.
        self.lab.server.run(["ip", "mptcp", "limits", "set", "subflows", "2", "add_addr_accepted", "2"])
        world.start_pattern_server(self.lab, wrapper=_MPTCPIZE)
        endpoints = []
        for link in self.lab.links:
            flags = self.lte_flags if link.name == "lte" else ""
            endpoints.append(f"{link.name}={link.addresses[0]}{flags}")
        manager = python_argv("benchmarks.mptcp_manager", *endpoints)
        world.start_ready(self.lab.mobile.popen(manager, stdout=subprocess.PIPE))

    def transfer(self, *arguments: str) -> LabProcess:
        return world.bulk_client(self.lab, *arguments, wrapper=_MPTCPIZE)

    def check(self) -> str:
        counters = self._counters()
        if not counters["MPCapableACKRX"] or counters["MPCapableFallbackACK"]:
            return "the connection was plain TCP"
        return "" if counters["MPJoinAckRx"] else "no second subflow was ever opened"

    def _counters(self) -> dict[str, int]:
        """The server's MPTCP counters."""
        lines = self.lab.server.run(["cat", "/proc/net/netstat"]).stdout.splitlines()
        names, values = (line.split()[1:] for line in lines if line.startswith("MPTcpExt:"))
        return dict(zip(names, map(int, values), strict=True))


class MptcpBackup(Mptcp):
    """The second subflow stands by."""

    name = "mptcp-backup"
    title = "MPTCP, LTE as backup"
    lte_flags = ":backup"


class MptcpTwo(Mptcp):
    """Both subflows carry data."""

    name = "mptcp-two"
    title = "MPTCP, two subflows"


class PlainTcp(Contender):
    """One TCP connection and nothing else: it stays on the link where it began."""

    name = "tcp"
    title = "TCP"

    def start(self, links: Sequence[str]) -> None:
        world.start_pattern_server(self.lab)

    def transfer(self, *arguments: str) -> LabProcess:
        return world.bulk_client(self.lab, *arguments)

    def check(self) -> str:
        return ""


MOBILE: tuple[type[Contender], ...] = (Msocks, MptcpBackup, MptcpTwo)
