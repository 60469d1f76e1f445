"""Tells at once when a link comes, goes, or gets another address."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from msocks.link_monitor.route_socket import Overrun, RouteSocket
from msocks.link_monitor.table import LinkChange, LinkTable, changes
from msocks.values.endpoint import Address
from msocks.values.link import Link

Subscriber = Callable[[Sequence[LinkChange]], None]

# Reading all routes may take at most this share of the loop's time, on a host with very many of them.
_SHARE_OF_TIME = 0.1
_RETRY_S = 1.0


class LinkMonitor:
    """The links of this host as the kernel sees them: UP or DOWN. Needs no privilege.

    Events that come in one turn of the loop make one call of the subscribers, who see the state after the last.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        names: Sequence[str] | None = None,
        *,
        metered: Mapping[str, bool] | None = None,
    ) -> None:
        """
        Args:
            loop: Watches the netlink socket.
            names: The interfaces that may be used, in order of preference; they need not exist yet. None for every
                interface that has a default route or a route to the proxy.
            metered: Whether an interface's use costs money, by name, where somebody said so.
        """
        self._loop = loop
        self._table = LinkTable(names, metered or {})
        self._socket: RouteSocket | None = None
        self._links: dict[str, Link] = {}
        self._subscribers: list[Subscriber] = []
        self._routes_due: asyncio.TimerHandle | None = None
        self._routes_not_before = 0.0

    def start(self) -> None:
        """Subscribe and read what there is: `links` is complete afterwards.

        Raises:
            OSError: There is no NETLINK_ROUTE here (a container may forbid it).
        """
        self._socket = RouteSocket()
        try:
            self._read_everything()
        except OSError:
            self.close()
            raise
        self._links = self._table.links()
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Stop; `links` stays as it was."""
        if self._routes_due is not None:
            self._routes_due.cancel()
            self._routes_due = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def links(self) -> Mapping[str, Link]:
        """The links by name, preferred first: in the order given, or by the metric of their routes."""
        return MappingProxyType(self._links)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with what has changed, from the loop; with nothing where only the order of preference has.

        Returns what ends that.
        """
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._subscribers.remove(subscriber)

        return unsubscribe

    def set_targets(self, targets: Iterable[Address]) -> None:
        """The proxy's addresses: an interface with a route to one of them is a link too."""
        self._table.set_targets(targets)
        self._publish()

    def recheck(self, name: str) -> None:
        """Ask the kernel about one link now.

        Worth it when a link is suspected of being dead: the kernel holds back the news of a lost carrier for up to a
        second when it had news before (linkwatch), but answers truly when asked.
        """
        if self._socket is None:
            return
        try:
            interface = self._socket.interface(name)
        except OSError:
            return  # the event will come
        if interface is not None:
            self._apply_routes_later(self._table.apply(interface))
            self._publish()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        assert self._socket is not None
        routes_wanted = False
        try:
            for fact in self._socket.read_events():
                routes_wanted |= self._table.apply(fact)
        except Overrun:
            self._start_over()
        self._apply_routes_later(routes_wanted)
        self._publish()

    def _start_over(self) -> None:
        try:
            self._read_everything()
        except OSError:
            self._loop.call_later(_RETRY_S, self._start_over_and_publish)

    def _start_over_and_publish(self) -> None:
        if self._socket is not None:
            self._start_over()
            self._publish()

    def _read_everything(self) -> None:
        assert self._socket is not None
        self._table.replace(self._socket.interfaces(), self._socket.addresses(), self._socket.routes())

    def _apply_routes_later(self, wanted: bool) -> None:
        """Read the routes in this turn, unless that would take too large a share of the loop's time."""
        if not wanted or self._routes_due is not None:
            return
        wait = self._routes_not_before - time.monotonic()
        if wait <= 0:
            self._read_routes()
        else:
            self._routes_due = self._loop.call_later(wait, self._read_routes_now)

    def _read_routes_now(self) -> None:
        self._routes_due = None
        self._read_routes()
        self._publish()

    def _read_routes(self) -> None:
        assert self._socket is not None
        began = time.monotonic()
        try:
            self._table.replace_routes(self._socket.routes())
        except OSError:
            self._routes_due = self._loop.call_later(_RETRY_S, self._read_routes_now)
        ended = time.monotonic()
        self._routes_not_before = ended + (ended - began) / _SHARE_OF_TIME

    def _publish(self) -> None:
        before, self._links = self._links, self._table.links()
        changed = changes(before, self._links)
        if changed or list(before) != list(self._links):
            for subscriber in list(self._subscribers):
                subscriber(changed)
