"""IP networks as people write them."""

from __future__ import annotations

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
