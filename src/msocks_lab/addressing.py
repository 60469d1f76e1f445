"""Who has which address in a lab. Plain values, no input or output.

Mobile - radio (one router per link, where its NAT lives) - core - proxy and server. The mobile's IPv4 subnets are
private (RFC 1918), as behind most access routers; everything else stands in the ranges for documentation (RFC 5737,
RFC 3849), which no real network uses. IPv6 stays off unique local addresses, because RFC 6724 would let names that
have both families prefer IPv4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from msocks_lab.config import LabConfig, LinkConfig

CORE_IPV4 = "203.0.113.254"
CORE_IPV6 = "2001:db8:fe::fe"


@dataclass(frozen=True, slots=True)
class WiredHost:
    """A host with one interface, `eth0`, toward the core router."""

    name: str
    ipv4: str
    ipv4_gateway: str
    ipv4_subnet: str
    ipv6: str
    ipv6_gateway: str
    ipv6_subnet: str

    @property
    def addresses(self) -> tuple[str, str]:
        """The IPv4 and the IPv6 address."""
        return (self.ipv4, self.ipv6)


PROXY = WiredHost(
    "proxy", "192.0.2.2", "192.0.2.1", "192.0.2.0/24", "2001:db8:f0::2", "2001:db8:f0::1", "2001:db8:f0::/64"
)
SERVER = WiredHost(
    "server", "198.51.100.2", "198.51.100.1", "198.51.100.0/24", "2001:db8:f1::2", "2001:db8:f1::1", "2001:db8:f1::/64"
)
WIRED_HOSTS = (PROXY, SERVER)


@dataclass(frozen=True)
class AccessPlan:
    """The addresses of one link; `index` counts links from 1, `lease` the mobile's addresses on it from 0.

    `lost` is the IP version that the link has lost for a while, 0 for none.
    """

    link: LinkConfig
    index: int
    lease: int = 0
    lost: int = 0

    @property
    def radio(self) -> str:
        """The name of the link's access router."""
        return f"radio-{self.link.name}"

    @property
    def metric(self) -> int:
        """The metric of the mobile's default routes over this link."""
        return 100 * self.index

    @property
    def ipv4(self) -> str | None:
        """The mobile's IPv4 address on this link."""
        return f"10.{self.index}.0.{2 + self.lease % 250}" if self.link.ipv4 and self.lost != 4 else None

    @property
    def ipv6(self) -> str | None:
        """The mobile's IPv6 address on this link."""
        has = self.link.ipv6 and self.lost != 6
        return f"2001:db8:{self.index:x}::{2 + self.lease % 250:x}" if has else None

    @cached_property
    def ipv4_gateway(self) -> str:
        """The access router's IPv4 address toward the mobile."""
        return f"10.{self.index}.0.1"

    @cached_property
    def ipv4_subnet(self) -> str:
        """The link's IPv4 subnet."""
        return f"10.{self.index}.0.0/24"

    @cached_property
    def ipv6_gateway(self) -> str:
        """The access router's IPv6 address toward the mobile."""
        return f"2001:db8:{self.index:x}::1"

    @cached_property
    def ipv6_subnet(self) -> str:
        """The link's IPv6 subnet."""
        return f"2001:db8:{self.index:x}::/64"

    @cached_property
    def public_ipv4(self) -> str:
        """The access router's IPv4 address toward the core, the one that a NAT shows."""
        return f"203.0.113.{self.index}"

    @cached_property
    def public_ipv6(self) -> str:
        """The access router's IPv6 address toward the core."""
        return f"2001:db8:fe::{self.index:x}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The mobile's addresses on this link, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


def access_plans(config: LabConfig) -> list[AccessPlan]:
    """The plan of every link, in order."""
    return [AccessPlan(link, index) for index, link in enumerate(config.links, start=1)]


def hosts_file() -> str:
    """The /etc/hosts that every host of the lab sees."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    for host in WIRED_HOSTS:
        lines += [f"{host.ipv4} {host.name} {host.name}4", f"{host.ipv6} {host.name} {host.name}6"]
    return "\n".join(lines) + "\n"
