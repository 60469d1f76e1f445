"""How diverted packets stay on this host: what carries the mark is delivered here, whatever its destination.

A rule and a route for each IP version (ip-rule(8), ip-route(8)). They outlive a process that is killed. Then they do
nothing, since nobody sets the mark; `remove` sweeps them away.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from msocks.interception.refusal import CannotIntercept

MARK = 0x4D534F43
"""Of packets that are diverted."""
TABLE = 19795
"""Of the route."""
PRIORITY = 1000
"""Of the rule."""

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_LOCAL = 2  # RTN_LOCAL
_HOST = 254  # RT_SCOPE_HOST


def install() -> None:
    """Put rules and routes there; IPv6's only where the host has it.

    Raises:
        CannotIntercept: The privilege is missing.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as netlink:
        loopback = netlink.link_lookup(ifname="lo")[0]
        for family in _FAMILIES:
            try:
                scope = {"scope": _HOST} if family == socket.AF_INET else {}
                netlink.route("add", family=family, dst="default", type=_LOCAL, oif=loopback, table=TABLE, **scope)
                netlink.rule("add", family=family, fwmark=MARK, table=TABLE, priority=PRIORITY)
            except NetlinkError as error:
                if family == socket.AF_INET6:
                    continue
                raise CannotIntercept(
                    f"the kernel takes no route for diverted packets: {error}",
                    remedy="run as root (sudo), or with CAP_NET_ADMIN; the loopback interface has to be up",
                ) from None


def remove() -> int:
    """Take them away, those that a killed process has left too; returns how many rules there were.

    Raises:
        CannotIntercept: The privilege is missing.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as netlink:
        found = list(_rules(netlink))
        try:
            for family in found:
                netlink.rule("del", family=family, fwmark=MARK, table=TABLE, priority=PRIORITY)
            for family in _FAMILIES:
                for route in netlink.get_routes(family=family, table=TABLE):
                    netlink.route("del", family=family, dst="default", type=route["type"], table=TABLE)
        except NetlinkError as error:
            raise CannotIntercept(
                f"what is left of transparent mode cannot be removed: {error}",
                remedy="run as root (sudo), or with CAP_NET_ADMIN",
            ) from None
    return len(found)


def rules() -> int:
    """How many of the rules there are; needs no privilege."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        return sum(1 for _ in _rules(netlink))


def _rules(netlink: Any) -> Iterator[int]:
    """The address family of each."""
    for family in _FAMILIES:
        for rule in netlink.get_rules(family=family):
            if rule.get_attr("FRA_FWMARK") == MARK and rule.get_attr("FRA_TABLE") == TABLE:
                yield family
