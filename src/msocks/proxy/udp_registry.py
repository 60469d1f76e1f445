"""All UDP associations of the proxy, those of plain clients and the flows of mobile nodes: found, counted, expired."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import structlog

from msocks.errors import ProtocolError
from msocks.protocol.replay import Freshness
from msocks.protocol.socks5_wire import ReplyCode
from msocks.protocol.udp_flow import Attach, Detach, FlowStatus, Up, decode_udp_flow
from msocks.proxy.associations import Association
from msocks.proxy.config import ProxyConfig
from msocks.proxy.datagram_way import DatagramWay
from msocks.proxy.dialler import Dialler
from msocks.proxy.incoming import Incoming
from msocks.proxy.resolver import ResolutionError
from msocks.proxy.udp_flow import UdpFlow, answer
from msocks.proxy.udp_host import UdpAssociation, UdpView
from msocks.proxy.udp_plain import PlainUdp
from msocks.transport.deadlines import Deadlines
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint
from msocks.values.ids import AssociationId

_log = structlog.get_logger("msocks.proxy.udp")

# A name is asked for anew after this; what the resolver itself remembers, and for how long, it does not tell.
_NAME_S = 30.0
# The same where it has no address, so that whoever repeats the question does not keep the resolver busy.
_NO_NAME_S = 3.0
_NAMES = 1024


class UdpDestinations:
    """The proxy's rules and its resolver, for datagrams. Implements `msocks.proxy.udp_relay.Destinations`."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._loop = dialler.reactor.loop
        self._known: dict[str, tuple[float, list[Address]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def refusal(self, address: Address, port: int) -> str | None:
        return self._dialler.refusal(address, port)

    def lookup(self, name: str, on_found: Callable[[list[Address]], None]) -> None:
        until, addresses = self._known.get(name, (0.0, []))
        if self._loop.time() < until:
            on_found(addresses)
            return
        task = self._loop.create_task(self._ask(name, on_found))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Look nothing up any more."""
        for task in self._tasks:
            task.cancel()

    async def _ask(self, name: str, on_found: Callable[[list[Address]], None]) -> None:
        try:
            addresses = await self._dialler.resolver.resolve(name)
            good_for_s = _NAME_S
        except ResolutionError:
            addresses, good_for_s = [], _NO_NAME_S
        if len(self._known) >= _NAMES:
            del self._known[next(iter(self._known))]
        self._known[name] = (self._loop.time() + good_for_s, addresses)
        on_found(addresses)


class UdpRegistry:
    """See the module. Implements `msocks.proxy.udp_host.UdpHost`."""

    def __init__(
        self,
        reactor: Reactor,
        config: ProxyConfig,
        dialler: Dialler,
        find: Callable[[AssociationId], Association | None],
    ) -> None:
        """
        Args:
            reactor: Watches the sockets.
            config: The proxy's settings.
            dialler: Has the rules and the resolver.
            find: Gives the association of an id.
        """
        self.reactor = reactor
        self.destinations = UdpDestinations(dialler)
        self._find = find
        self._limits = config.limits
        self._told_addresses = config.udp_address
        self._idle: Deadlines[UdpAssociation] = Deadlines(reactor.loop, config.udp_idle_s, self._expire)
        self._all: dict[UdpAssociation, None] = {}
        self._flows: dict[tuple[AssociationId, int], UdpFlow] = {}
        self._count_of_user: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[UdpView]:
        return (association.view() for association in tuple(self._all))

    # -- plain clients ----------------------------------------------------------------------------------------------

    def open_plain(self, user: str, incoming: Incoming, announced: Endpoint) -> PlainUdp | ReplyCode:
        """A UDP ASSOCIATE of a plain client; the reply code where it cannot be."""
        if not self._has_room(user):
            return ReplyCode.GENERAL_FAILURE
        try:
            opened = PlainUdp(self, user, incoming.sock, announced)
        except OSError as error:
            _log.error("udp_failed", user=user, client=str(incoming.peer), reason=error.strerror)
            return ReplyCode.GENERAL_FAILURE
        self._enter(opened)
        return opened

    def told(self, bound: Endpoint) -> Endpoint:
        """What a client is told of a port: behind a NAT that is not what this host knows of it."""
        version = 0 if bound.address is None else bound.address.version
        told = next((each for each in self._told_addresses if each.version == version), None)
        return bound if told is None else Endpoint(told, bound.port)

    # -- mobile nodes -----------------------------------------------------------------------------------------------

    def receive(self, datagram: bytes, way: DatagramWay) -> None:
        """A datagram came to the proxy's port that says it belongs to a flow."""
        try:
            signed = decode_udp_flow(datagram)
        except ProtocolError:
            return
        message = signed.message
        association = self._find(message.association)
        if association is None or not isinstance(message, Attach | Up | Detach):
            return
        if not signed.verify(association.udp_key_up):
            return
        flow = self._flows.get((association.id, message.flow))
        if flow is not None and flow.association is not association:
            flow.close()  # its keys are those of an association that this one has replaced
            flow = None
        if flow is None:
            flow = self._open_flow(association, message, way)
        if flow is not None:
            flow.hear(message, way)

    def _open_flow(self, association: Association, message: Attach | Up | Detach, way: DatagramWay) -> UdpFlow | None:
        spent = association.udp_flows
        if not isinstance(message, Attach) or spent.check(message.flow) is not Freshness.FRESH:
            answer(association, message, way, FlowStatus.ENDED)
            return None
        try:
            flow = UdpFlow(self, association, message.flow) if self._has_room(association.user) else None
        except OSError as error:
            _log.error("udp_failed", user=association.user, client=str(way.source), reason=error.strerror)
            flow = None
        if flow is None:
            answer(association, message, way, FlowStatus.LIMIT)
            return None
        spent.commit(message.flow)
        self._flows[association.id, message.flow] = flow
        self._enter(flow)
        return flow

    # -- ends -------------------------------------------------------------------------------------------------------

    def users(self) -> list[str]:
        """The users who have associations."""
        return list(self._count_of_user)

    def end_user(self, user: str) -> None:
        """The operator removed the user: all his associations end."""
        for association in tuple(self._all):
            if association.user == user:
                association.close()

    def close(self) -> None:
        """End all."""
        for association in tuple(self._all):
            association.close()
        self._idle.take_all()
        self.destinations.close()

    def _expire(self, association: UdpAssociation) -> None:
        _log.debug("udp_idle", user=association.user)
        association.close()

    def _has_room(self, user: str) -> bool:
        of_user = self._count_of_user.get(user, 0)
        whole = len(self._all) >= self._limits.udp_associations
        # Nobody in particular, where no password is asked, is many: only the limit of all holds for them.
        if whole or (user and of_user >= self._limits.udp_associations_per_user):
            _log.warning("udp_limit", user=user, whose="proxy" if whole else "user")
            return False
        return True

    def _enter(self, association: UdpAssociation) -> None:
        self._all[association] = None
        self._count_of_user[association.user] = self._count_of_user.get(association.user, 0) + 1
        self._idle.add(association)

    # -- UdpHost ----------------------------------------------------------------------------------------------------

    def heard(self, association: UdpAssociation) -> None:
        self._idle.add(association)

    def ended(self, association: UdpAssociation) -> None:
        self._idle.discard(association)
        del self._all[association]
        if isinstance(association, UdpFlow):
            self._flows.pop((association.association.id, association.number), None)
        left = self._count_of_user[association.user] - 1
        if left:
            self._count_of_user[association.user] = left
        else:
            del self._count_of_user[association.user]
