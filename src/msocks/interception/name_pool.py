"""Addresses that stand for names: a program asks for a name and gets one, connects to it, and the proxy gets the name.

The addresses are of ranges that no host has: 198.18.0.0/15 (RFC 2544, benchmarks) and 100::/64 (RFC 6666, discarded).
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from msocks.values.endpoint import Address, check_name

_IPV4, _IPV6 = IPv4Network("198.18.0.0/15"), IPv6Network("100::/64")
_MOST = 65535


class NamePool:
    """Names and their addresses, 65,535 at most: then the one that was asked for least recently is forgotten."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._names: dict[int, str] = {}

    def addresses(self, name: str) -> tuple[IPv4Address, IPv6Address]:
        """The two addresses of a name. Raises AddressError where it is none that SOCKS can carry."""
        name = check_name(name.lower())
        number = self._numbers.get(name)
        if number is None:
            number = len(self._names) + 1
            if number > _MOST:
                _, number = self._numbers.popitem(last=False)
            self._numbers[name] = number
            self._names[number] = name
        self._numbers.move_to_end(name)
        return _IPV4[number], _IPV6[number]

    def name(self, address: Address) -> str | None:
        """The name that an address stands for. Raises LookupError where it is of the ranges and stands for none."""
        network = _IPV4 if address.version == 4 else _IPV6
        if address not in network:
            return None
        return self._names[int(address) - int(network.network_address)]
