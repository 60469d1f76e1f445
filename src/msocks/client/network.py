"""What a connection needs of the node that it belongs to, and whom it tells what becomes of it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from msocks.client.dial_gates import DialGates
from msocks.client.ended_sessions import EndedSession
from msocks.errors import MsocksError
from msocks.protocol.control import ParkedLeg
from msocks.session.mobile import HOLD_DOWN_S
from msocks.session.mobile_effects import Carried
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint
from msocks.values.ids import AssociationId, SessionId

if TYPE_CHECKING:
    from msocks.client.connection import Connection
    from msocks.client.udp_connection import UdpConnection


class Authority(Protocol):
    """Where legs get their keys: the association with the proxy."""

    @property
    def id(self) -> AssociationId:
        """What the proxy knows the keys by."""

    @property
    def key_up(self) -> bytes:
        """Authenticates requests."""

    @property
    def key_down(self) -> bytes:
        """Authenticates replies."""

    def next_leg_number(self) -> int:
        """A number that no leg of this association had."""

    def expiry_ms(self) -> int:
        """The proxy's time until which a request that is written now is good."""

    def proxy_time_is(self, proxy_ms: int) -> None:
        """A verified reply told the proxy's time."""

    def forgotten(self, key_up: bytes) -> None:
        """The proxy refused a request signed with `key_up`, unverifiably: the association may be gone there."""


class Network(Protocol):
    """What a connection needs of the node."""

    @property
    def reactor(self) -> Reactor:
        """Where sockets are watched."""

    @property
    def authority(self) -> Authority | None:
        """The keys; None while there are none."""

    @property
    def gates(self) -> DialGates:
        """Where those wait who want to dial."""

    async def dial(self, link: str) -> socket.socket:
        """Connect to the proxy over a link. Raises OSError, MsocksError."""

    def take_spare(self, link: str) -> socket.socket | None:
        """A connection to the proxy over a link that stands already, if there is one; it is the caller's then."""

    def ask_position(self, link: str, session: SessionId) -> float | None:
        """Ask over a link how far a session's upstream has come; seconds the answer may take; None: none comes."""

    def carries(self) -> None:
        """A connection has got a leg, perhaps over another link."""

    def park(self, leg: ParkedLeg) -> None:
        """Tell the proxy, if it can be told now, that a leg is gone."""

    def close_session(self, session: SessionId, generation: int) -> None:
        """Tell the proxy, now or as soon as it can be told, that a session is to be reset."""

    def is_split(self, link: str) -> bool:
        """Whether a middlebox on this link ACKs in the proxy's place."""

    def is_doubtful(self, link: str) -> bool:
        """Whether that is not known yet, so that nothing shall be let go of for an ACK."""

    def finished(self, link: str, ended: EndedSession) -> None:
        """A session is over in good order; its last leg was on `link`."""

    def sent(self, link: str) -> None:
        """Bytes were written to a leg on this link."""

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which links a connection may use.

    Attributes:
        links: The best first; all of them usable.
        hold_down_s: How long another link must have been the best before a connection that is well goes to it.
    """

    links: tuple[str, ...]
    hold_down_s: float = HOLD_DOWN_S


class Routed(Protocol):
    """What is carried over one link or another: a connection, or a UDP flow."""

    @property
    def session(self) -> SessionId:
        """Names it."""

    @property
    def carried_by(self) -> str | None:
        """The link that carries it or, while none does, that carried it last."""

    def release(self) -> None:
        """Prefer no link any more."""


class Router(Protocol):
    """Who decides which connection uses which links."""

    def route(self, connection: Routed, usable: tuple[str, ...]) -> Route:
        """The links for a connection, out of those that can be used now, which come in the node's order."""


class ConnectionListener(Protocol):
    """Who is told what becomes of a connection; calls come from the event loop, none may block."""

    def on_carried(self, carried: Carried) -> None:
        """A leg stands: the first one, or one that the session has moved to."""

    def on_parked(self) -> None:
        """The leg is gone; the session waits for another."""

    def on_ended(self, error: MsocksError | None) -> None:
        """The session is over. What had arrived can still be read from the stream."""


class UdpAuthority(Authority, Protocol):
    """The association, where UDP flows get their keys and numbers."""

    def next_udp_flow(self) -> int:
        """A number that no UDP flow of this association had."""


class UdpNetwork(Protocol):
    """What a UDP flow needs of the node."""

    @property
    def reactor(self) -> Reactor:
        """Where sockets are watched."""

    @property
    def authority(self) -> UdpAuthority | None:
        """The keys; None while there are none."""

    def open_udp(self, link: str, turn: int) -> socket.socket:
        """A UDP socket through a link, connected to one of the proxy's addresses, each in turn.

        Raises OSError, MsocksError.
        """

    def addresses(self, link: str) -> tuple[Address, ...]:
        """The link's own addresses."""

    def sent(self, link: str) -> None:
        """Something was sent on this link."""

    def forget_udp(self, connection: UdpConnection) -> None:
        """The flow has ended."""


class DatagramListener(ConnectionListener, Protocol):
    """Who is told what becomes of a UDP flow, and gets its datagrams."""

    def on_datagram(self, source: Endpoint, payload: bytes) -> None:
        """A server has sent something."""
