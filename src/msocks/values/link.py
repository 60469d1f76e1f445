"""Links: the network interfaces of the mobile node and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address

from msocks.values.endpoint import Address

MIN_MTU = 68
"""RFC 791: every internet module forwards 68 octets."""
MAX_MTU = 65536
"""The MTU of Linux' loopback interface."""


class Family(IntEnum):
    """IP version."""

    V4 = 4
    V6 = 6

    @staticmethod
    def of(address: Address) -> Family:
        """The family of an address."""
        return Family.V4 if isinstance(address, IPv4Address) else Family.V6


class LinkKind(StrEnum):
    """What sort of network a link leads to."""

    ETHERNET = "ethernet"
    """A cable, and whatever is none of the others: a bridge, a tunnel, a USB tether."""
    WIFI = "wifi"
    CELLULAR = "cellular"


class LinkState(StrEnum):
    """What a link can do for a leg."""

    UP = "up"
    """It has carrier, an address and a route, and what is sent is answered as far as is known."""
    DOWN = "down"
    """It has no carrier, no address, or no route."""
    SILENT = "silent"
    """It looks up, but nothing comes back: probes and data stay unanswered."""
    CAPTIVE = "captive"
    """It is up, but something on the way answers in the proxy's place (a captive portal)."""


@dataclass(frozen=True, slots=True)
class Link:
    """A snapshot of one network interface.

    Attributes:
        name: The interface's name, 1 to 15 bytes.
        index: The interface's index, positive. A re-created interface has the old name and a new index.
        state: What it can do.
        addresses: Usable source addresses (no link-local, tentative or deprecated ones), preferred first.
        routes: The families for which a route to the internet, or to the proxy, leads over this link.
        mtu: The largest IP packet in bytes.
        metered: Whether its use costs money; None where nobody said.

    Raises:
        ValueError: A field is outside its range.
    """

    name: str
    index: int
    state: LinkState
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    routes: frozenset[Family] = frozenset()
    mtu: int = 1500
    metered: bool | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= 15:
            raise ValueError(f"an interface name has 1 to 15 bytes: {self.name!r}")
        if self.index < 1:
            raise ValueError(f"an interface index is positive, not {self.index}")
        if not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ValueError(f"an MTU is {MIN_MTU} to {MAX_MTU} bytes, not {self.mtu}")

    def source(self, family: Family) -> Address | None:
        """The preferred source address of a family; None where the link has none."""
        for address in self.addresses:
            if Family.of(address) is family:
                return address
        return None

    def reaches(self, family: Family) -> bool:
        """Whether a connection over `family` can be tried: the link is not down and has address and route."""
        return self.state is not LinkState.DOWN and family in self.routes and self.source(family) is not None

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that can be tried, in the order of the addresses."""
        found = dict.fromkeys(Family.of(address) for address in self.addresses)
        return tuple(family for family in found if self.reaches(family))
