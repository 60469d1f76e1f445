"""How diverted packets stay on this host: what carries the mark is delivered here, whatever its destination.

A rule and a route for each IP version (ip-rule(8), ip-route(8)). They outlive a process that is killed. Then they do
nothing, since nobody sets the mark; `remove` sweeps them away.
"""

from __future__ import annotations

import errno
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
        for family in _FAMILIES:
            try:
                netlink.route("add", **_route(netlink, family))
                netlink.rule("add", **_rule(family))
            except NetlinkError as error:
                if family == socket.AF_INET6:
                    continue
                raise _refused("the kernel takes no route for diverted packets", error) from None


def remove() -> int:
    """Take them away, those that a killed process has left too; returns how many rules there were.

    Raises:
        CannotIntercept: The privilege is missing.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as netlink:
        found = list(_rules(netlink))
        changes = [(netlink.rule, _rule(family)) for family in found]
        changes += [(netlink.route, _route(netlink, family)) for family in _FAMILIES]
        for change, what in changes:
            try:
                change("del", **what)
            except NetlinkError as error:
                if error.code in (errno.EPERM, errno.EACCES) and found:
                    raise _refused("what is left of transparent mode cannot be removed", error) from None
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


def _rule(family: int) -> dict[str, Any]:
    return {"family": family, "fwmark": MARK, "table": TABLE, "priority": PRIORITY}


def _route(netlink: Any, family: int) -> dict[str, Any]:
    loopback = netlink.link_lookup(ifname="lo")[0]
    scope = {"scope": _HOST} if family == socket.AF_INET else {}
    return {"family": family, "dst": "default", "type": _LOCAL, "oif": loopback, "table": TABLE, **scope}


def _refused(what: str, error: Exception) -> CannotIntercept:
    return CannotIntercept(
        f"{what}: {error}", remedy="run as root (sudo), or with CAP_NET_ADMIN; the loopback interface has to be up"
    )
