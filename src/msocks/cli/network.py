"""IP networks and interfaces as people write them."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network

from msocks.errors import ConfigurationError


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Read a network in CIDR notation, or an address for that alone.

    Raises:
        ConfigurationError: The text is neither, or an address with bits behind the prefix.
    """
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is not an IP network", remedy="write it in CIDR notation, such as 10.0.0.0/8 or fd00::/8"
        ) from None
    raise ConfigurationError(
        f"{text} has bits set behind its prefix", remedy=f"write {meant}, or the address without a prefix"
    )


def parse_interface(text: str) -> str:
    """Read the name of one network interface, which need not be there now.

    Raises:
        ConfigurationError: No interface has such a name.
    """
    if re.fullmatch(r"[\w.@+-]{1,15}", text, re.ASCII) is None:
        raise ConfigurationError(
            f"{text[:40]!r} cannot be the name of a network interface",
            remedy="`ip link` shows the names; globs are not possible here",
        )
    return text
