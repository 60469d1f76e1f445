"""A program's UDP association (RFC 1928 section 7), and the UDP flow that carries it."""

from __future__ import annotations

import socket
import time

import structlog

from msocks.agent.farewell import Farewells
from msocks.agent.flow import FlowOwner, FlowView, LastMove, ProgramGone
from msocks.agent.local_port import ProgramRequest
from msocks.client.node import MobileNode
from msocks.client.udp_connection import UdpConnection
from msocks.errors import EndReason, LinkUnavailable, MsocksError, SessionEnded
from msocks.session.mobile_effects import Carried, SessionState
from msocks.transport.udp_client_port import UdpClientPort
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId
from msocks.values.origin import Origin

_log = structlog.get_logger("msocks.agent.udp")

DESTINATION = "udp"
"""What stands for the destination: each datagram has its own."""
_DISCARDED_BYTES = 4096


class UdpFlow:
    """See the module. Answers its request when a path stands, and ends with the program's TCP connection.

    It is for the agent what `msocks.agent.flow.Flow` is. Implements `msocks.client.network.DatagramListener`.
    """

    protocol = "udp"
    destination = DESTINATION

    def __init__(self, node: MobileNode, request: ProgramRequest, owner: FlowOwner, farewells: Farewells) -> None:
        self.rule: str | None = None
        self.pinned: str | None = None
        self._node = node
        self._request = request
        self._owner = owner
        self._farewells = farewells
        self._since = time.time()
        self._last_move: LastMove | None = None
        self._port: UdpClientPort | None = None
        self._refusal: MsocksError | None = None
        self._ended_as: FlowView | None = None
        self._bytes_up = self._bytes_down = 0
        self._reopened = 0
        self.connection = UdpConnection(node, self)

    def begin(self) -> None:
        """Look for a path. The owner may be told of the end before this returns."""
        self._node.reactor.watch(self._request.sock.fileno(), self._on_program)
        self._node.begin(self.connection)

    @property
    def program(self) -> socket.socket:
        """The program's connection, to ask the kernel about; never to read or write."""
        return self._request.sock

    @property
    def session(self) -> SessionId:
        """Names the flow."""
        return self.connection.session

    @property
    def state(self) -> SessionState:
        """As users see it."""
        return self._ended_as.state if self._ended_as is not None else self.connection.state

    @property
    def link(self) -> str | None:
        """The link that carries it or is being tried."""
        return None if self._ended_as is not None else self.connection.link

    def view(self) -> FlowView:
        """What there is to know of it now."""
        return self._ended_as or self._view(self.connection.state, self.connection.link, None)

    def refuse(self, error: MsocksError) -> None:
        """End it: the program is told `error`, if it was told nothing yet."""
        self._refusal = error
        self.connection.abort()

    def reset(self) -> None:
        """End it now."""
        self.connection.abort()

    # -- DatagramListener -------------------------------------------------------------------------------------------

    def on_carried(self, carried: Carried) -> None:
        if self._port is None:
            self._grant(carried)
            return
        if carried.from_link is not None:
            self._last_move = LastMove(carried.cause, carried.from_link, carried.link, time.time())
        if self.connection.reopened > self._reopened:
            self._reopened = self.connection.reopened
            _log.warning(
                "udp_reopened", flow=self.session.short, reason="the proxy had lost it; servers see another port"
            )
        self._owner.on_moved(self, carried)

    def on_parked(self) -> None:
        self._owner.on_parked(self)

    def on_datagram(self, source: Endpoint, payload: bytes) -> None:
        if self._port is not None:
            self._bytes_down += len(payload)
            self._port.send(source, payload)

    def on_ended(self, error: MsocksError | None) -> None:
        error = self._refusal or error
        sock, answered = self._request.sock, self._port is not None
        if not answered and error is None:
            error = SessionEnded(EndReason.CLOSED)
        if isinstance(error, ProgramGone):
            error = None if answered else error  # that is how an association ends
        self._ended_as = self._view(SessionState.ENDED, None, error)
        if self._port is not None:
            self._port.close()
        self._node.reactor.unwatch(sock.fileno())
        self._owner.on_ended(self)
        if answered or error is None:
            sock.close()
        else:
            self._farewells.say(sock, self._request.dialogue.refuse(error))
        self._owner.on_closed(self)

    # -- the program ------------------------------------------------------------------------------------------------

    def _grant(self, carried: Carried) -> None:
        request = self._request
        try:
            port = UdpClientPort(self._node.reactor, request.sock, request.destination, self._on_upward)
            self._port = port
            request.sock.send(request.dialogue.grant(port.bound))
        except OSError as error:
            self.refuse(ProgramGone() if self._port is not None else LinkUnavailable(carried.link, str(error)))
            return
        self._owner.on_connected(self, carried)

    def _on_upward(self, destination: Endpoint, payload: bytes) -> None:
        self._bytes_up += len(payload)
        self.connection.send(destination, payload)

    def _on_program(self, _events: int) -> None:
        """What a program says on the connection means nothing; its end is the association's."""
        while self._ended_as is None:
            try:
                data = self._request.sock.recv(_DISCARDED_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.refuse(ProgramGone())

    def _view(self, state: SessionState, link: str | None, error: MsocksError | None) -> FlowView:
        connection, port = self.connection, self._port
        dropped = 0 if port is None else port.fragments + port.foreign + port.malformed + port.not_sent
        return FlowView(
            session=connection.session,
            state=state,
            link=link,
            destination=DESTINATION,
            datapath="none",
            datapath_reason="unspecified",
            generation=connection.generation,
            moves=connection.moves,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            since=self._since,
            last_move=self._last_move,
            rule=self.rule,
            pinned=self.pinned,
            error=error,
            origin=self._request.origin or Origin(),
            protocol=self.protocol,
            dropped_datagrams=dropped + connection.dropped,
        )
