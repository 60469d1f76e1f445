"""What is put to the test of a moving network: MSOCKS, TCP alone, and what others offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from benchmarks import world
from benchmarks.world import AGENT_PORT, PATTERN_PORT, BenchmarkError, Product
from msocks_lab import Lab, LabProcess


def not_spliced(lab: Lab) -> str:
    """While data flows: what shows that the one session is not spliced, or nothing.

    A spliced session has no socket toward the server in the proxy's kernel, and the server has the proxy's.
    """
    mine = [socket for socket in lab.proxy.tcp_sockets() if socket["remote_port"] == PATTERN_PORT]
    theirs = [
        socket
        for socket in lab.server.tcp_sockets()
        if (socket["local_port"], socket["state"]) == (PATTERN_PORT, "ESTABLISHED")
    ]
    if mine:
        return f"the session is not spliced: the proxy has a socket toward the server ({mine[0]['state']})"
    if [socket["remote_address"] in lab.proxy.addresses for socket in theirs] != [True]:
        return f"the server has these connections: {theirs}"
    return ""


class Contender(ABC):
    """A way to carry one TCP connection between the lab's mobile host and its server."""

    name: str
    title: str
    start_s = 1.0
    """About how long `start` takes."""

    def __init__(self, lab: Lab, *, ipv6: bool = False) -> None:
        self.lab = lab
        self.target = lab.server.ipv6 if ipv6 else lab.server.ipv4

    @abstractmethod
    def start(self, links: Sequence[str]) -> None:
        """Start everything; ready to use these links when it returns, others may come later."""

    @abstractmethod
    def transfer(self, *arguments: str) -> LabProcess:
        """Start a `bulk_client` whose connection is carried."""

    def carried(self) -> str:
        """While data flows: what shows that it is not carried as it should be, or nothing."""
        return ""

    @abstractmethod
    def check(self) -> str:
        """After the transfer: what shows that the connection was not carried as it should have been, or nothing."""


class Msocks(Contender):
    """Through agent and proxy."""

    name = "msocks"
    title = "MSOCKS"
    start_s = 3.5
    datapath = "splice"
    product: Product

    def start(self, links: Sequence[str]) -> None:
        world.start_pattern_server(self.lab)
        self.product = world.start_product(self.lab, datapath=self.datapath)
        self.product.wait_links(links)
        self._accepted = self.lab.server.accepted_connections()

    def transfer(self, *arguments: str) -> LabProcess:
        return world.bulk_client(self.lab, "--socks", f"127.0.0.1:{AGENT_PORT}", *arguments, target=self.target)

    def move(self, link: str) -> None:
        """`msocks move` for the one flow there is. Raises BenchmarkError where it fails."""
        done = self.product.msocks("move", "all", "--to", link)
        if done.returncode:
            raise BenchmarkError(f"msocks move ended with {done.returncode}: {done.stderr.strip()}")

    def carried(self) -> str:
        return not_spliced(self.lab)

    def check(self) -> str:
        accepted = self.lab.server.accepted_connections() - self._accepted
        return "" if accepted == 1 else f"the server accepted {accepted} connections for one session"


class PlainTcp(Contender):
    """One TCP connection and nothing else: it stays on the link where it began."""

    name = "tcp"
    title = "TCP"

    def start(self, links: Sequence[str]) -> None:
        world.start_pattern_server(self.lab)

    def transfer(self, *arguments: str) -> LabProcess:
        return world.bulk_client(self.lab, *arguments, target=self.target)

    def check(self) -> str:
        return ""
