"""What is known of interfaces, addresses and routes, and the links that follow from it. No input or output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Network

from msocks.link_monitor.route_socket import (
    AddressGone,
    Fact,
    Interface,
    InterfaceAddress,
    InterfaceGone,
    Route,
    RoutesChanged,
)
from msocks.values.endpoint import Address
from msocks.values.link import MAX_MTU, MIN_MTU, Family, Link, LinkState

_ULA = IPv6Network("fc00::/7")
_DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class LinkChange:
    """One link is not what it was.

    Attributes:
        name: The interface's name.
        before: None where the link is new.
        after: None where the interface is gone.
    """

    name: str
    before: Link | None
    after: Link | None


def changes(before: Mapping[str, Link], after: Mapping[str, Link]) -> list[LinkChange]:
    """What makes one picture of the links the other; empty where they are equal."""
    names = dict.fromkeys([*before, *after])
    return [
        LinkChange(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    ]


@dataclass(slots=True)
class _Entry:
    interface: Interface
    addresses: dict[Address, InterfaceAddress] = field(default_factory=dict)
    routes: list[Route] = field(default_factory=list)
    families: frozenset[Family] = frozenset()  # for which one of the routes leads out
    metric: int | None = None  # the lowest that a route out had: the operating system's own order of preference


class LinkTable:
    """Holds facts of `msocks.link_monitor.route_socket`.

    Without `names`, a link is every interface but loopback over which a default route or a route to the proxy leads or,
    as long as the interface exists, led once. With `names`, it is each of these that exists.
    """

    def __init__(self, names: Sequence[str] | None, metered: Mapping[str, bool]) -> None:
        """
        Args:
            names: The interfaces that may be used, in order of preference; None for all.
            metered: What somebody said about an interface's costs, by name.
        """
        self._names = None if names is None else tuple(dict.fromkeys(names))
        self._metered = dict(metered)
        self._entries: dict[int, _Entry] = {}
        self._targets: tuple[Address, ...] = ()

    def set_targets(self, targets: Iterable[Address]) -> None:
        """The proxy's addresses: a route that covers one of them is as good as a default route."""
        self._targets = tuple(targets)
        self._note_ways_out()

    def replace(
        self, interfaces: Iterable[Interface], addresses: Iterable[InterfaceAddress], routes: Iterable[Route]
    ) -> None:
        """All there is, after events were lost or before the first."""
        before, self._entries = self._entries, {}
        for interface in interfaces:
            self._entries[interface.index] = entry = _Entry(interface)
            known = before.get(interface.index)
            if known is not None:
                entry.metric = known.metric
        for address in addresses:
            self.apply(address)
        self.replace_routes(routes)

    def replace_routes(self, routes: Iterable[Route]) -> None:
        """All routes there are."""
        for entry in self._entries.values():
            entry.routes.clear()
        for route in routes:
            holder = self._entries.get(route.index)
            if holder is not None:
                holder.routes.append(route)
        self._note_ways_out()

    def apply(self, fact: Fact) -> bool:
        """Take one event into account; True where the routes have to be asked for as well."""
        match fact:
            case Interface(index=index):
                known = self._entries.get(index)
                if known is None:
                    self._entries[index] = _Entry(fact)
                    return True
                changed = known.interface.is_up is not fact.is_up
                known.interface = fact if fact.mtu is not None else replace(fact, mtu=known.interface.mtu)
                return changed
            case InterfaceGone(index=index):
                return self._entries.pop(index, None) is not None
            case InterfaceAddress(index=index, address=address):
                holder = self._entries.get(index)
                if holder is not None:
                    holder.addresses[address] = fact
                return False
            case AddressGone(index=index, address=address):
                holder = self._entries.get(index)
                return holder is not None and holder.addresses.pop(address, None) is not None
            case RoutesChanged():
                return True

    def links(self) -> dict[str, Link]:
        """The links as they are now, preferred first: in the order of `names`, or of the routes' metrics."""
        found: list[tuple[int, Link]] = []
        for index, entry in self._entries.items():
            name = entry.interface.name
            if self._names is None:
                if entry.metric is None or entry.interface.is_loopback:
                    continue
                rank = entry.metric
            elif name in self._names:
                rank = self._names.index(name)
            else:
                continue
            found.append((rank, self._link(index, entry)))
        found.sort(key=lambda ranked: (ranked[0], ranked[1].index))
        return {link.name: link for _, link in found}

    def _note_ways_out(self) -> None:
        for entry in self._entries.values():
            ways_out = [route for route in entry.routes if self._leads_out(route)]
            entry.families = frozenset(Family(route.destination.version) for route in ways_out)
            if ways_out:
                entry.metric = min(route.metric for route in ways_out)

    def _link(self, index: int, entry: _Entry) -> Link:
        interface, routes = entry.interface, entry.families
        addresses = _preferred_first(entry.addresses.values())
        usable = interface.is_running and any(Family.of(address) in routes for address in addresses)
        return Link(
            name=interface.name,
            index=index,
            state=LinkState.UP if usable else LinkState.DOWN,
            addresses=addresses,
            routes=routes,
            mtu=min(max(interface.mtu or _DEFAULT_MTU, MIN_MTU), MAX_MTU),
            metered=self._metered.get(interface.name),
        )

    def _leads_out(self, route: Route) -> bool:
        return route.destination.prefixlen == 0 or any(target in route.destination for target in self._targets)


def _preferred_first(addresses: Iterable[InterfaceAddress]) -> tuple[Address, ...]:
    """Usable source addresses; deprecated ones only where a family has no other.

    Within a family the order is that of RFC 6724 as far as it does not depend on the destination: temporary addresses
    first (rule 7), and unique local ones (RFC 4193), which lead nowhere on most networks, last.
    """
    usable = [each for each in addresses if each.is_usable]
    fresh = {each.address.version for each in usable if not each.is_deprecated}
    kept = [each for each in usable if not (each.is_deprecated and each.address.version in fresh)]
    kept.sort(key=lambda each: (each.address.version, each.address in _ULA if each.address.version == 6 else False,
                                not each.is_temporary))  # fmt: skip
    return tuple(each.address for each in kept)
