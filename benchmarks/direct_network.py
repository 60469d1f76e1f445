"""A mobile host and a server with the proxy's host in the middle, and nothing else: no radio, no emulator, no core.

    mobile --veth-- proxy --veth-- server

Its kernel forwards IP packets between the two, and is at the same time where the proxies run: both ways cross the same
interfaces and the same kernel. The hosts are a lab's; the cables are laid here. Addresses are from the ranges for
benchmarks (RFC 2544, RFC 5180). The two ends have many, so that TIME-WAIT never holds all ports between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from msocks_lab import Host, Lab

MOBILE_SIDE, SERVER_SIDE = "mobileside", "serverside"  # the proxy's interfaces
MOBILE_SUBNETS = ("198.18.0.0/16", "2001:2:0:18::/64")
SERVER_SUBNETS = ("198.19.0.0/16", "2001:2:0:19::/64")
ADDRESSES = 64  # of each end and family
_FIRST = 16
_FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
_LONG_LISTS = (
    "net.core.somaxconn=4096",
    "net.ipv4.tcp_max_syn_backlog=8192",
    "net.ipv4.tcp_max_tw_buckets=2000000",  # TIME-WAIT lasts as long as it should, for everybody
)


def _host(subnet: str, number: int) -> str:
    network, _, _ = subnet.partition("/")
    return f"{network}{number:x}" if ":" in network else f"{network.rpartition('.')[0]}.{number}"


def _family(subnets: tuple[str, str], family: int) -> str:
    return subnets[family == 6]


@dataclass(frozen=True)
class DirectNetwork:
    """The three hosts of a lab without links, joined by `lay`. `family` is 4 or 6 everywhere."""

    lab: Lab

    def lay(self) -> None:
        """Lay the cables, and let the host in the middle forward. Raises LabError."""
        middle = self.lab.proxy
        sides = ((self.lab.mobile, MOBILE_SIDE, MOBILE_SUBNETS), (self.lab.server, SERVER_SIDE, SERVER_SUBNETS))
        for host, interface, subnets in sides:
            # In the lab's PID namespace its supervisor, which holds the descriptors, is process 1.
            namespace = f"/proc/1/fd/{self.lab.namespaces(host.name)['net']}"
            peer = ["peer", "name", "direct", "netns", namespace]
            middle.run(["ip", "link", "add", "name", interface, "type", "veth", *peer])
            for at, name, numbers in ((middle, interface, [1]), (host, "direct", _numbers())):
                lines = [f"link set {name} up"]
                for subnet in subnets:
                    length = subnet.partition("/")[2]
                    no_detection = " nodad" if ":" in subnet else ""
                    lines += [f"addr add {_host(subnet, n)}/{length} dev {name}{no_detection}" for n in numbers]
                at.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n")
            others = SERVER_SUBNETS if subnets is MOBILE_SUBNETS else MOBILE_SUBNETS
            for subnet, other in zip(subnets, others, strict=True):
                host.run(["ip", "route", "add", other, "via", _host(subnet, 1), "dev", "direct"])
        middle.run(["sysctl", "-q", "-w", *_FORWARDING])
        for host in (self.lab.mobile, middle, self.lab.server):
            _set(host, _LONG_LISTS)

    def proxy_address(self, family: int) -> str:
        """Where the mobile finds a proxy."""
        return _host(_family(MOBILE_SUBNETS, family), 1)

    def sources(self, family: int) -> list[str]:
        """The mobile's addresses."""
        return [_host(_family(MOBILE_SUBNETS, family), number) for number in _numbers()]

    def destinations(self, family: int) -> list[str]:
        """The server's addresses."""
        return [_host(_family(SERVER_SUBNETS, family), number) for number in _numbers()]

    @cached_property
    def interfaces(self) -> tuple[str, str]:
        """The interfaces of the host in the middle that carry what is measured."""
        return (MOBILE_SIDE, SERVER_SIDE)


def _numbers() -> range:
    return range(_FIRST, _FIRST + ADDRESSES)


def _set(host: Host, settings: tuple[str, ...]) -> None:
    """Set what this kernel has in a network namespace; some of it belongs to the machine on others."""
    for setting in settings:
        host.run(["sysctl", "-q", "-w", setting], check=False)
