"""Which addresses the proxy connects to.

The first of these that applies decides:

1. an address in a ``deny`` network is denied;
2. an address in an ``allow`` network is allowed;
3. an address in one of the default ranges (loopback, private, link-local and the like) is denied;
4. everything else is allowed.

How long a prefix is does not matter. Names are resolved first, and each of their addresses is judged by itself.

An IPv6 address that stands for an IPv4 address is judged as both: IPv4-mapped (RFC 4291), IPv4-compatible, NAT64
(RFC 6052), 6to4 (RFC 3056) and Teredo (RFC 4380) addresses lead to the IPv4 address that they embed, so one that is
denied there cannot be reached through them. An ``allow`` network that holds the IPv6 address itself says that the
operator knows where it leads.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from msocks.proxy.config import Network
from msocks.values.endpoint import Address

DENIED_BY_DEFAULT: tuple[Network, ...] = (
    IPv4Network("0.0.0.0/8"),  # this network, RFC 791
    IPv4Network("10.0.0.0/8"),  # private, RFC 1918
    IPv4Network("100.64.0.0/10"),  # carrier-grade NAT, RFC 6598
    IPv4Network("127.0.0.0/8"),  # loopback, RFC 1122
    IPv4Network("169.254.0.0/16"),  # link-local, RFC 3927; cloud metadata services
    IPv4Network("172.16.0.0/12"),  # private, RFC 1918
    IPv4Network("192.0.0.0/24"),  # protocol assignments, RFC 6890
    IPv4Network("192.0.2.0/24"),  # documentation, RFC 5737
    IPv4Network("192.88.99.0/24"),  # 6to4 relays, deprecated by RFC 7526
    IPv4Network("192.168.0.0/16"),  # private, RFC 1918
    IPv4Network("198.18.0.0/15"),  # benchmarking, RFC 2544
    IPv4Network("198.51.100.0/24"),  # documentation, RFC 5737
    IPv4Network("203.0.113.0/24"),  # documentation, RFC 5737
    IPv4Network("224.0.0.0/4"),  # multicast, RFC 5771
    IPv4Network("240.0.0.0/4"),  # reserved, and the limited broadcast, RFC 1112 and RFC 919
    IPv6Network("::/128"),  # unspecified, RFC 4291
    IPv6Network("::1/128"),  # loopback, RFC 4291
    IPv6Network("64:ff9b:1::/48"),  # NAT64 of the local network, RFC 8215
    IPv6Network("100::/64"),  # discard only, RFC 6666
    IPv6Network("2001:2::/48"),  # benchmarking, RFC 5180
    IPv6Network("2001:10::/28"),  # ORCHID, RFC 4843
    IPv6Network("2001:20::/28"),  # ORCHIDv2, RFC 7343
    IPv6Network("2001:db8::/32"),  # documentation, RFC 3849
    IPv6Network("3fff::/20"),  # documentation, RFC 9637
    IPv6Network("5f00::/16"),  # segment routing, RFC 9602
    IPv6Network("fc00::/7"),  # unique local, RFC 4193
    IPv6Network("fe80::/10"),  # link-local, RFC 4291
    IPv6Network("fec0::/10"),  # site-local, deprecated by RFC 3879
    IPv6Network("ff00::/8"),  # multicast, RFC 4291
)

_NAT64 = IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = IPv6Network("::/96")
_REMEMBERED = 4096


class Verdict(StrEnum):
    """What the rules say of an address."""

    ALLOWED = "allowed"
    DENIED_BY_RULE = "denied by --deny"
    DENIED_BY_DEFAULT = "not a public address, denied unless --allow names it"


def embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to by its form; None for an ordinary one."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    value = int(address)
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and value > 1):
        return IPv4Address(value & 0xFFFFFFFF)
    return None


class _Networks:
    """Networks of both families as pairs of integers: some ten times faster than `ipaddress`'s own test."""

    def __init__(self, networks: Iterable[Network]) -> None:
        pairs: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for network in networks:
            pairs[network.version].append((int(network.netmask), int(network.network_address)))
        self._pairs = pairs

    def __contains__(self, address: Address) -> bool:
        value = int(address)
        return any(value & mask == network for mask, network in self._pairs[address.version])


class DestinationRules:
    """The rules of one proxy; see the module."""

    def __init__(self, allow: Iterable[Network] = (), deny: Iterable[Network] = ()) -> None:
        self._allow = _Networks(allow)
        self._deny = _Networks(deny)
        self._default = _Networks(DENIED_BY_DEFAULT)
        self._remembered: dict[Address, Verdict] = {}

    def judge(self, address: Address) -> Verdict:
        """What the rules say of `address`."""
        verdict = self._remembered.get(address)
        if verdict is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            verdict = self._remembered[address] = self._judge(address)
        return verdict

    def _judge(self, address: Address) -> Verdict:
        embedded = embedded_ipv4(address) if isinstance(address, IPv6Address) else None
        if address in self._deny or (embedded is not None and embedded in self._deny):
            return Verdict.DENIED_BY_RULE
        if address in self._allow:
            return Verdict.ALLOWED
        if address in self._default:
            return Verdict.DENIED_BY_DEFAULT
        if embedded is not None and embedded not in self._allow and embedded in self._default:
            return Verdict.DENIED_BY_DEFAULT
        return Verdict.ALLOWED
