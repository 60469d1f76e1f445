"""The mobile node: the links of this host, the association with one proxy, and the sessions that move between links."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from msocks.client.association import Association
from msocks.client.confirmations import Confirmations
from msocks.client.connection import Connection
from msocks.client.control_channel import ControlChannels
from msocks.client.control_connection import ProxyWord
from msocks.client.dial_gates import DialGates
from msocks.client.ended_sessions import EndedSession
from msocks.client.inbound import Inbound
from msocks.client.link_path import LinkPath
from msocks.client.lost_legs import LostLegs
from msocks.client.network import ConnectionListener, Route, Router
from msocks.client.node_authority import NodeAuthority
from msocks.client.path_watch import PathWatch
from msocks.client.session_closer import SessionCloser
from msocks.client.spare_legs import SpareLegs
from msocks.client.udp_connection import UdpConnection
from msocks.errors import LinkUnavailable, MsocksError
from msocks.link_monitor.monitor import LinkMonitor
from msocks.link_monitor.table import LinkChange
from msocks.protocol.control import Drain, LegAccepted, Parked, ParkedLeg, Received, SessionEnded, Welcome
from msocks.protocol.inbound import Incoming, Listening
from msocks.protocol.probe import Position
from msocks.transport.dial import Dialer
from msocks.transport.leg_stream import LegStream
from msocks.transport.reactor import Reactor
from msocks.transport.sweep import Sweep
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Address, Endpoint
from msocks.values.ids import SessionId
from msocks.values.link import Link, LinkState

_DIAL_TIMEOUT_S = 5.0
_CLOSING_S = 2.0
_UNKNOWN_RTT_MS = 100.0
_ANSWER_S = 0.03  # that of the proxy's program, beyond a round trip


class MobileNode:
    """One access link, any number of connections. Make and use it on one event loop.

    start() returns at once and needs no network: connections wait until there is one.
    """

    def __init__(
        self,
        access: AccessLink,
        *,
        links: Sequence[str] | None = None,
        agent_name: str = "msocks library",
        spare_legs: bool = True,
    ) -> None:
        """`links` are interface names in order of preference; by default all that have a route to the proxy.

        With `spare_legs`, a connection is kept open over each link that a session may have to move to.
        """
        loop = asyncio.get_running_loop()
        self.access = access
        self.reactor = Reactor(loop)
        self.sweep = Sweep(self.reactor)
        self.connections: dict[SessionId, Connection] = {}
        self.udp: dict[SessionId, UdpConnection] = {}
        self.gates = DialGates()
        self._association = Association()
        self._dialer = Dialer(self.reactor, access.addresses)
        self._monitor = LinkMonitor(loop, links)
        self._watch = PathWatch(
            self.reactor,
            self._monitor,
            self._dialer,
            self._association,
            legs=self._legs_on,
            wanted=lambda: bool(self.connections or self.udp or self.inbound.listeners),
            rebound=self._on_rebound,
            on_position=self._on_position,
        )
        self._channels = ControlChannels(
            self.reactor, self._dialer, self._watch, self._association, access, owner=self, agent_name=agent_name
        )
        self.inbound = Inbound(self._channels)
        self._authority = NodeAuthority(self._association, loop)
        self._closer = SessionCloser(self, loop)
        self._confirmations = Confirmations(loop, lambda: list(self.connections.values()), self, self._say_received)
        self._lost = LostLegs(self, self._channels, self._closer)
        self._unsubscribe = self._watch.subscribe(self._on_links)
        self._usable: tuple[str, ...] = ()
        self.router: Router | None = None
        """Decides for each connection; by default each may use all links in their order."""
        self._spares = SpareLegs(self.reactor, self.dial, self._spare_links if spare_legs else lambda: ((), ()))
        self._problem: MsocksError | None = None

    async def start(self) -> None:
        """Begin to watch the links and to look for the proxy. Raises OSError where the kernel gives no netlink."""
        self._monitor.start()
        self._watch.start()
        self._channels.start()
        self._offer_links()

    async def close(self) -> None:
        """Reset what is left, say goodbye to the proxy (two seconds at most), and let go of everything."""
        self.inbound.close_all()
        for connection in self._all():
            connection.abort()
        await self._closer.drain(_CLOSING_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._channels.close(), _CLOSING_S)
        self._unsubscribe()
        self._confirmations.close()
        self._spares.close()
        self._authority.close()
        self._watch.close()
        self._monitor.close()
        self._dialer.close()
        self.reactor.close()

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def links(self) -> Mapping[str, Link]:
        """The links in order of preference, with what is known of them."""
        return self._watch.links()

    def rtt_ms(self, link: str) -> float | None:
        """Round-trip time to the proxy over a link; None where nothing was answered yet."""
        return self._watch.rtt_ms(link)

    def set_metered(self, is_metered: Callable[[str], bool]) -> None:
        """Which links cost money, by name: they carry next to no probes while nobody uses them. By default cellular
        ones. To be called again when the answers change.
        """
        self._watch.set_metered(is_metered)

    def path(self, link: str) -> LinkPath | None:
        """What is known of the way to the proxy over a link; None where there is no such link."""
        return self._watch.path(link)

    def is_split(self, link: str) -> bool:
        """Whether a middlebox on that link ACKs in the proxy's place; see `msocks.session.split_path`."""
        path = self._watch.path(link)
        return path is not None and path.split.is_split

    def is_doubtful(self, link: str) -> bool:
        """Whether it is not known yet if that link has one."""
        path = self._watch.path(link)
        return path is not None and path.split.is_doubtful

    @property
    def acks_are_suspect(self) -> bool:
        """Whether a link that can be used has one, or may have one."""
        return any(self.is_split(name) or self.is_doubtful(name) for name in self._usable)

    @property
    def problem(self) -> MsocksError | None:
        """Why there is no association with the proxy; None while all is well, or while no link is up."""
        return None if self.authorised else self._problem

    @property
    def authorised(self) -> bool:
        """Whether the proxy has accepted this node, so that legs can be authenticated."""
        return self._association.keys is not None

    @property
    def usable_links(self) -> tuple[str, ...]:
        """The links that a leg can be tried on now, the preferred one first."""
        return self._usable

    # -- connections ------------------------------------------------------------------------------------------------

    def open(
        self,
        destination: Endpoint,
        stream: LegStream,
        listener: ConnectionListener,
        *,
        link: str | None = None,
    ) -> Connection:
        """A new connection; it begins as soon as a link can be used. `link` is preferred to all others."""
        connection = Connection(self, destination, stream, listener)
        self.begin(connection, link=link)
        return connection

    def begin(self, connection: Connection | UdpConnection, *, link: str | None = None) -> None:
        """Carry a connection, or a UDP flow, that was made for this node."""
        if link is not None:
            connection.prefer(link)
        if isinstance(connection, UdpConnection):
            self.udp[connection.session] = connection
        else:
            self.connections[connection.session] = connection
            if self.acks_are_suspect:
                self._confirmations.begin()
        if self._association.refusal is not None:
            connection.give_up(self._association.refusal)
        elif self.authorised:
            self._offer(connection, self._rtt_s())

    async def connect(self, connection: Connection, *, link: str | None = None) -> None:
        """Carry a connection and wait until it stands. Raises what `Connection.connected` raises."""
        self.begin(connection, link=link)
        await connection.connected()

    # -- Network: what connections need -----------------------------------------------------------------------------

    @property
    def authority(self) -> NodeAuthority | None:
        """The keys for legs; None while there are none."""
        return self._authority if self.authorised else None

    async def dial(self, link: str) -> socket.socket:
        """Connect to the proxy over a link. Raises LinkUnavailable, OSError."""
        return await self._dialer.dial(self._known(link), timeout_s=_DIAL_TIMEOUT_S, rtt_ms=self._watch.rtt_ms(link))

    def take_spare(self, link: str) -> socket.socket | None:
        """A connection over a link that stands already, if there is one."""
        known = self._watch.links().get(link)
        return None if known is None else self._spares.take(known)

    def _known(self, link: str) -> Link:
        known = self._watch.links().get(link)
        if known is None:
            raise LinkUnavailable.unknown(link)
        return known

    def ask_position(self, link: str, session: SessionId) -> float | None:
        """Ask over a link how far a session's upstream has come; seconds the answer may take; None: none comes."""
        rtt_ms = self._watch.rtt_ms(link) or _UNKNOWN_RTT_MS
        return _ANSWER_S + rtt_ms / 1000 if self._watch.ask_position(link, session) else None

    def park(self, leg: ParkedLeg) -> None:
        """Tell the proxy that a leg is gone."""
        self._lost.park(leg)

    def close_session(self, session: SessionId, generation: int) -> None:
        """Have the proxy reset a session, as soon as it can be told."""
        self._closer.close(session, generation)

    def finished(self, link: str, ended: EndedSession) -> None:
        """A session is over in good order; its last leg was on `link`."""
        self._lost.ended.note(link, ended)

    def sent(self, link: str) -> None:
        """Bytes left on a leg of this link."""
        self._watch.sent(link)

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""
        self.connections.pop(connection.session, None)
        self.carries()

    def carries(self) -> None:
        """Which links carry sessions may have changed, and so where a spare leg is needed."""
        self._spares.reconsider()

    def _spare_links(self) -> tuple[list[str], tuple[str, ...]]:
        """The idle links that a session may have to move to, metered ones left out; and all that can be used."""
        connections = list(self.connections.values()) if self.authorised else []
        allowed = {link for connection in connections for link in connection.usable_links}
        allowed -= {connection.link for connection in connections}
        idle = [name for name in self._usable if name in allowed and not self._watch.is_metered(name)]
        return idle, self._usable if connections else ()

    # -- UdpNetwork: what UDP flows need besides ----------------------------------------------------------------------

    def open_udp(self, link: str, turn: int) -> socket.socket:
        """A UDP socket through a link to one of the proxy's addresses, each in turn. Raises OSError, MsocksError."""
        return self._dialer.open_udp(self._known(link), turn)

    def addresses(self, link: str) -> tuple[Address, ...]:
        """The link's own addresses."""
        return tuple(self.links[link].addresses) if link in self.links else ()

    def forget_udp(self, connection: UdpConnection) -> None:
        """The flow has ended."""
        self.udp.pop(connection.session, None)

    # -- ControlOwner -----------------------------------------------------------------------------------------------

    def on_control_open(self, link: str, welcome: Welcome) -> None:
        """The proxy has accepted this node on one link: legs may go over any."""
        del welcome
        self._problem = None
        self._offer_links()
        for connection in self._all():
            connection.keys_changed(self._authority.key_up)
        self._spares.retry()
        self.inbound.on_channel(link)

    def on_control_lost(self, link: str, error: MsocksError | OSError | None) -> None:
        """A control channel is gone; what it has established stays."""
        if isinstance(error, MsocksError):
            self._problem = error
        elif error is not None:
            self._problem = LinkUnavailable(link, str(error))
        if (refusal := self._association.refusal) is not None:
            for connection in self._all():
                connection.give_up(refusal)
            self.inbound.on_refused(refusal)

    def on_control_message(self, link: str, message: ProxyWord) -> None:
        """The proxy's word on a session."""
        del link
        match message:
            case LegAccepted(session=session, generation=generation):
                if connection := self.connections.get(session):
                    connection.leg_accepted(generation)
            case SessionEnded(session=session, reason=reason):
                if connection := self.connections.get(session):
                    connection.proxy_ended(reason)
            case Parked(sessions=sessions):
                lost = OSError(errno.ECONNRESET, "the proxy has lost the leg")
                for session, generation in sessions:
                    if connection := self.connections.get(session):
                        connection.leg_lost(generation, lost)
            case Received(streams=streams):
                for stream in streams:
                    if connection := self.connections.get(stream.session):
                        connection.stream.confirm(stream.received, stream.at_end)
            case Listening() | Incoming():
                self.inbound.on_message(message)
            case Drain():
                pass  # nothing depends on it yet

    # -- inside -----------------------------------------------------------------------------------------------------

    def _on_links(self, changes: Sequence[LinkChange]) -> None:
        for change in changes:
            after = change.after
            if after is not None and change.before != after and after.state is LinkState.UP:
                self._lost.check_addresses(after)
        self._offer_links()
        for change in changes:
            before, after = change.before, change.after
            if before is not None and (
                after is None or not self._can_carry(after) or before.addresses != after.addresses
            ):
                self._lost.confirm_ends(before.name)

    def _on_rebound(self, link: str) -> None:
        self._lost.on_rebound(link)

    def _on_position(self, position: Position) -> None:
        if connection := self.connections.get(position.session):
            connection.position.told(position.received)

    def _offer_links(self) -> None:
        usable = tuple(name for name, link in self._watch.links().items() if self._can_carry(link))
        self._usable = usable
        if self.acks_are_suspect:
            self._confirmations.begin()
        if self.authorised:
            rtt_s = self._rtt_s()
            for connection in self._all():
                self._offer(connection, rtt_s)
        self.carries()

    def offer(self, connection: Connection | UdpConnection) -> None:
        """Have the router decide anew about one connection."""
        if self.authorised and (connection.session in self.connections or connection.session in self.udp):
            self._offer(connection, self._rtt_s())

    def _offer(self, connection: Connection | UdpConnection, rtt_s: dict[str, float]) -> None:
        route = Route(self._usable) if self.router is None else self.router.route(connection, self._usable)
        links = route.links
        if connection.leg is not None:
            # A flow that is well goes to no link that the proxy has not been heard on: it may be captive.
            links = tuple(name for name in links if name == connection.link or self._proven(name)) or links
        connection.links_changed(links, rtt_s, route.hold_down_s)

    def _proven(self, link: str) -> bool:
        path = self._watch.path(link)
        return path is not None and path.proven

    def _all(self) -> list[Connection | UdpConnection]:
        return [*self.connections.values(), *self.udp.values()]

    def _can_carry(self, link: Link) -> bool:
        return link.state is LinkState.UP and bool(self._dialer.candidates(link))

    def _say_received(self, message: Received) -> float | None:
        link = self._channels.send(message)
        return None if link is None else (self._watch.rtt_ms(link) or 0.0) / 1000

    def _rtt_s(self) -> dict[str, float]:
        known = {name: self._watch.rtt_ms(name) for name in self._usable}
        return {name: rtt / 1000 for name, rtt in known.items() if rtt is not None}

    def _legs_on(self, link: str) -> Iterable[socket.socket]:
        for connection in self.connections.values():
            leg = connection.leg
            if leg is not None and connection.link == link:
                yield leg
