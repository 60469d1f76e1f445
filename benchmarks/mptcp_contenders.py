"""MPTCP as a contender: from end to end, and to a SOCKS proxy in front of an ordinary server."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from benchmarks import world
from benchmarks.contenders import Contender
from msocks_lab import Host, LabProcess
from msocks_lab.process import python_argv

_MPTCPIZE = ("mptcpize", "run")
_SOCKS_PORT = 1084


class Mptcp(Contender):
    """MPTCP on both hosts, by `mptcpize`; a network manager keeps one endpoint for each link that is up."""

    lte_flags = ""

    @property
    def far_end(self) -> Host:
        """The host where the subflows end."""
        return self.lab.server

    def start(self, links: Sequence[str]) -> None:
        # The far end takes every subflow; the mobile's limits are the network manager's work.
        self.far_end.run(["ip", "mptcp", "limits", "set", "subflows", "2", "add_addr_accepted", "2"])
        self._start_far_end()
        endpoints = []
        for link in self.lab.links:
            flags = self.lte_flags if link.name == "lte" else ""
            endpoints.append(f"{link.name}={link.addresses[0]}{flags}")
        manager = python_argv("benchmarks.mptcp_manager", *endpoints)
        world.start_ready(self.lab.mobile.popen(manager, stdout=subprocess.PIPE))

    def _start_far_end(self) -> None:
        world.start_pattern_server(self.lab, wrapper=_MPTCPIZE)

    def transfer(self, *arguments: str) -> LabProcess:
        return world.bulk_client(self.lab, *arguments, wrapper=_MPTCPIZE, target=self.target)

    def check(self) -> str:
        counters = self._counters()
        if not counters["MPCapableACKRX"] or counters["MPCapableFallbackACK"]:
            return "the connection was plain TCP"
        return "" if counters["MPJoinAckRx"] else "no second subflow was ever opened"

    def _counters(self) -> dict[str, int]:
        """The far end's MPTCP counters."""
        lines = self.far_end.run(["cat", "/proc/net/netstat"]).stdout.splitlines()
        names, values = (line.split()[1:] for line in lines if line.startswith("MPTcpExt:"))
        return dict(zip(names, map(int, values), strict=True))


class MptcpBackup(Mptcp):
    """The second subflow stands by."""

    name = "mptcp-backup"
    title = "MPTCP, LTE as backup"
    lte_flags = ":backup"


class MptcpSocks(MptcpBackup):
    """MPTCP to microsocks at the proxy, LTE as backup; the server is an ordinary one."""

    name = "mptcp-socks"
    title = "MPTCP to a SOCKS proxy"

    @property
    def far_end(self) -> Host:
        return self.lab.proxy

    def _start_far_end(self) -> None:
        world.start_pattern_server(self.lab)
        self.lab.proxy.popen([*_MPTCPIZE, "microsocks", "-i", "0.0.0.0", "-p", str(_SOCKS_PORT)])
        self.lab.proxy.wait_listening(_SOCKS_PORT)

    def transfer(self, *arguments: str) -> LabProcess:
        return super().transfer("--socks", f"{self.lab.proxy.ipv4}:{_SOCKS_PORT}", *arguments)
