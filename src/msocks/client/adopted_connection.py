"""A session at the mobile node that another process has begun."""

from __future__ import annotations

from dataclasses import dataclass

from msocks.client.connection import Connection
from msocks.client.network import ConnectionListener, Network
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.adopted_session import AdoptedSession
from msocks.transport.leg_stream import LegStream
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId


@dataclass(frozen=True, slots=True)
class Past:
    """What a connection was before.

    Attributes:
        session: Names it.
        generation: Of its live leg, or of the last.
        link: That carried it last.
        moves: Legs after the first.
        datapath: What carries it at the proxy.
        datapath_reason: Why.
        told_split: The proxy was told of a middlebox on the live leg.
    """

    session: SessionId
    generation: int
    link: str
    moves: int
    datapath: DatapathKind
    datapath_reason: DatapathReason
    told_split: bool


class AdoptedConnection(Connection):
    """A connection whose stream has taken up the live leg, if it was to be had; else it needs another at once."""

    def __init__(
        self, network: Network, destination: Endpoint, stream: LegStream, listener: ConnectionListener, past: Past
    ) -> None:
        super().__init__(network, destination, stream, listener)
        self.session = past.session
        self.told_split = past.told_split
        self.datapath, self.datapath_reason = past.datapath, past.datapath_reason
        self._live = stream.live_socket
        self._machine = AdoptedSession(
            str(destination),
            generation=past.generation,
            link=past.link,
            has_leg=self._live is not None,
            moves=past.moves,
        )
        self._connected.set_result(None)
