"""One flow: a program's connection, and the session that carries it."""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from msocks.agent.farewell import Farewells
from msocks.agent.local_port import ProgramRequest
from msocks.client.connection import Connection
from msocks.client.node import MobileNode
from msocks.errors import EndReason, MsocksError, SessionEnded
from msocks.session.byte_budget import ByteBudget
from msocks.session.leg_chain import StreamGapError
from msocks.session.mobile_effects import Carried, MoveCause, SessionState
from msocks.transport.reactor import FAILED
from msocks.transport.socket_pump import SocketPump
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId
from msocks.values.origin import Origin

if TYPE_CHECKING:
    from msocks.agent.any_flow import AnyFlow
    from msocks.agent.kept_flow import AdoptedFlow, KeptFlow

# A program that ends its direction before it has an answer may mean a half-close, or be gone.
_EOF_PATIENCE_S = 10.0
# How long the program may read nothing of a flow that has ended in good order.
_DELIVERY_PATIENCE_S = 60.0


class ProgramGone(MsocksError, ConnectionError):
    """The program closed or reset its connection."""

    def __init__(self) -> None:
        super().__init__("the program closed its connection")


@dataclass(frozen=True, slots=True)
class LastMove:
    """The latest change of leg. `at` is seconds since the epoch."""

    cause: MoveCause
    from_link: str
    to_link: str
    at: float


@dataclass(frozen=True, slots=True)
class FlowView:
    """What there is to know of a flow at one moment.

    Attributes:
        session: Names it.
        state: As users see it.
        link: The link that carries it or is being tried; None while there is none.
        destination: Where to; ``udp`` for a UDP association, each of whose datagrams has its own.
        datapath: What carries its bytes at the proxy: ``none`` (no leg yet), ``relay``, ``splice``.
        datapath_reason: Why it is not the splice, such as ``chosen-by-operator``.
        generation: Of the live leg.
        moves: Legs after the first.
        bytes_up: From the program, since the beginning.
        bytes_down: To the program.
        since: When the program asked for it, seconds since the epoch.
        last_move: None as long as the first leg carries it.
        rule: The policy's rule that matches it; None where none does.
        pinned: The one link that it may use, where somebody said so.
        error: Why it ended; None while it lives and after an orderly end.
        origin: Which program's it is.
        protocol: ``tcp`` or ``udp``.
        dropped_datagrams: Of a UDP association: those that this host did not carry; see `docs/explanation/udp.md`.
    """

    session: SessionId
    state: SessionState
    link: str | None
    destination: Endpoint | str
    datapath: str
    datapath_reason: str
    generation: int
    moves: int
    bytes_up: int
    bytes_down: int
    since: float
    last_move: LastMove | None
    rule: str | None
    pinned: str | None
    error: MsocksError | None
    origin: Origin
    protocol: str = "tcp"
    dropped_datagrams: int = 0


class FlowOwner(Protocol):
    """Who is told what becomes of flows; none of the calls may block."""

    def on_connected(self, flow: AnyFlow, carried: Carried) -> None:
        """The first leg stands, and the program has been told so."""

    def on_moved(self, flow: AnyFlow, carried: Carried) -> None:
        """Another leg carries it."""

    def on_parked(self, flow: AnyFlow) -> None:
        """It waits for another leg."""

    def on_ended(self, flow: AnyFlow) -> None:
        """It is over; its view does not change any more, but the program may still be reading what had arrived."""

    def on_closed(self, flow: AnyFlow) -> None:
        """After on_ended: nothing is left of it but its view."""


class Flow:
    """See the module. Made for a request, which it answers; ends by itself."""

    def __init__(
        self,
        node: MobileNode,
        request: ProgramRequest,
        owner: FlowOwner,
        farewells: Farewells,
        budget: ByteBudget,
        kept: KeptFlow | None = None,
    ) -> None:
        """What is held of the program's bytes counts in `budget`; `kept` makes the flow outlive this process."""
        self.destination = request.destination
        self.rule: str | None = None
        self.pinned: str | None = None
        self._node = node
        self._request = request
        self._owner = owner
        self._farewells = farewells
        self._since = time.time()
        self._last_move: LastMove | None = None
        self._answered = False
        self._refusal: MsocksError | None = None  # in place of what the connection says of its own end
        self._ended_as: FlowView | None = None
        self._program_eof = False
        self._closed = False
        # An urgent byte stays in its place in the stream; else the kernel takes it out, and it is lost.
        request.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._kept = kept
        self._pump: SocketPump
        if kept is None:
            self._pump = SocketPump(node.reactor, request.sock, self, node.sweep, budget)
            self.connection = Connection(node, request.destination, self._pump.stream, self, request.incoming)
        else:
            self._pump = kept.pump(node, request.sock, self, budget)
            self.connection = kept.connection(node, request.destination, self._pump.stream, self)

    def begin(self) -> None:
        """Look for a leg. The owner may be told of the end before this returns."""
        if not self._request.waits_in_connect:
            self._node.reactor.watch(self._request.sock.fileno(), self._on_program_waiting)
        self._node.begin(self.connection)

    def resume(self, kept: AdoptedFlow) -> None:
        """In place of `begin`: the program was answered, and the flow carried, by an earlier agent."""
        self._answered = True
        self._since, self._last_move = kept.since, kept.last_move
        kept.begin(self)
        self._pump.start()
        self._node.begin(self.connection)

    def note_hand(self) -> None:
        """What people have said of the flow has changed."""
        if self._kept is not None:
            self._kept.note()

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
        """Give up a connection that has not come about: the program is told `error`."""
        self._refusal = error
        self.connection.abort()

    def reset(self) -> None:
        """End it now: the program and the server see a reset."""
        self.connection.abort()
        self._close(reset=True)

    # -- ConnectionListener -----------------------------------------------------------------------------------------

    def on_carried(self, carried: Carried) -> None:
        if not self._answered:
            self._grant(carried)
            return
        if carried.from_link is not None:
            self._last_move = LastMove(carried.cause, carried.from_link, carried.link, time.time())
        self._owner.on_moved(self, carried)

    def on_parked(self) -> None:
        self._owner.on_parked(self)

    def on_ended(self, error: MsocksError | None) -> None:
        error = self._refusal or error
        if not self._answered and error is None:
            error = SessionEnded(EndReason.CLOSED)
        if self._answered:
            self._pump.on_readable()  # what had arrived before the end is the program's
        self._ended_as = self._view(SessionState.ENDED, None, error)
        self._owner.on_ended(self)
        if error is None:
            self._pump.when_delivered(_DELIVERY_PATIENCE_S, lambda delivered: self._close(reset=not delivered))
        elif self._answered:
            self._close(reset=True)
        else:
            self._refuse_program(error)

    # -- PumpOwner --------------------------------------------------------------------------------------------------

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        self.connection.leg_lost(generation, error)

    def on_socket_failed(self, error: OSError) -> None:
        del error  # a reset, or a time-out on loopback: the program is gone
        if self._ended_as is not None:
            self._close(reset=True)
        else:
            self._refusal = ProgramGone()
            self.connection.abort()

    def on_gap(self, error: StreamGapError) -> None:
        if self._ended_as is not None:
            self._close(reset=True)
        else:
            self.connection.lost_bytes(error)

    def on_finished(self) -> None:
        self.connection.finished()

    # -- the program ------------------------------------------------------------------------------------------------

    def _on_program_waiting(self, events: int) -> None:
        """The program's socket has news before there is an answer; what it sends early stays in the kernel."""
        if events & FAILED:
            self.on_socket_failed(OSError())
        elif events & select.EPOLLRDHUP and not self._program_eof:
            self._program_eof = True
            self._node.reactor.loop.call_later(_EOF_PATIENCE_S, self._give_up_on_program)

    def _give_up_on_program(self) -> None:
        if not self._answered and self._ended_as is None:
            self.refuse(ProgramGone())

    def _grant(self, carried: Carried) -> None:
        self._answered = True
        request = self._request
        try:
            # After two bytes of SOCKS at most, so the empty send buffer takes it whole. It must be first: the pump
            # writes the server's bytes behind it.
            bound = self.connection.bound if request.incoming is None else request.incoming.peer  # RFC 1928 section 6
            request.sock.send(request.dialogue.grant(bound))
        except OSError as error:
            self.on_socket_failed(error)
            return
        self._pump.start(request.dialogue.take_trailing())
        if self._kept is not None:
            self._kept.begin(self)
        self._owner.on_connected(self, carried)

    def _refuse_program(self, error: MsocksError) -> None:
        # The pump closes its own descriptor; the connection lives on for the answer.
        sock: socket.socket = self._request.sock.dup()
        sock.setblocking(False)
        self._close(reset=True)
        self._farewells.say(sock, self._request.dialogue.refuse(error))

    def _close(self, *, reset: bool) -> None:
        if not self._closed:
            self._closed = True
            if self._kept is not None:
                self._kept.end()
            self._pump.close(reset)
            self._owner.on_closed(self)

    def _view(self, state: SessionState, link: str | None, error: MsocksError | None) -> FlowView:
        connection, stream = self.connection, self._pump.stream
        return FlowView(
            session=connection.session,
            state=state,
            link=link,
            destination=self.destination,
            datapath=connection.datapath.name.lower(),
            datapath_reason=connection.datapath_reason.name.lower().replace("_", "-"),
            generation=connection.generation,
            moves=connection.moves,
            bytes_up=stream.written,
            bytes_down=stream.position,
            since=self._since,
            last_move=self._last_move,
            rule=self.rule,
            pinned=self.pinned,
            error=error,
            origin=self._request.origin or Origin(),
        )
