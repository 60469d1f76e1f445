"""An ordinary socket of this host, coupled with a mobile connection: what comes in at one goes out at the other."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable

from msocks.client.connection import Connection
from msocks.client.events import Ended, Event, Moved, Parked, Resumed
from msocks.client.node import MobileNode
from msocks.errors import MsocksError
from msocks.protocol.inbound import Incoming
from msocks.session.leg_chain import StreamGapError
from msocks.session.mobile_effects import Carried, SessionState
from msocks.transport.socket_pump import SocketPump
from msocks.values.endpoint import Endpoint


class CoupledSocket:
    """See the module. The socket is closed when the connection has ended and what had arrived was taken from it.

    Attributes:
        connection: To be carried by the node; it stands before `start`.
        error: Why the connection has ended; None as long as it lives, and after an end in good order.
        listener: Is told what happens.
    """

    def __init__(
        self, node: MobileNode, sock: socket.socket, destination: Endpoint, incoming: Incoming | None = None
    ) -> None:
        """
        Args:
            node: Carries it.
            sock: Connected and non-blocking; owned.
            destination: The server or, with `incoming`, the peer.
            incoming: What the proxy has said of a peer's connection.
        """
        self.error: MsocksError | None = None
        self.listener: Callable[[Event], None] | None = None
        self._was_parked = False
        self._pump = SocketPump(node.reactor, sock, self, node.sweep)
        self.connection = Connection(node, destination, self._pump.stream, self, incoming)

    def start(self) -> None:
        """The connection stands."""
        self._pump.start()

    def abort(self) -> None:
        """Reset both ends."""
        self.connection.abort()
        self._pump.close()

    # -- ConnectionListener -----------------------------------------------------------------------------------------

    def on_carried(self, carried: Carried) -> None:
        if carried.from_link is not None:
            self._tell(Moved(carried.from_link, carried.link, carried.cause))
        if self._was_parked:
            self._was_parked = False
            self._tell(Resumed(carried.link))

    def on_parked(self) -> None:
        self._was_parked = True
        self._tell(Parked())

    def on_ended(self, error: MsocksError | None) -> None:
        self.error = error
        self._pump.on_readable()  # what had arrived goes first
        if error is None:
            self._pump.when_delivered(math.inf, lambda _: self._pump.close(reset=False))
        else:
            self._pump.close()
        self._tell(Ended(error))

    # -- PumpOwner --------------------------------------------------------------------------------------------------

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        self.connection.leg_lost(generation, error)

    def on_socket_failed(self, error: OSError) -> None:
        del error  # whoever has the other end of the socket is gone
        if self.connection.state is SessionState.ENDED:
            self._pump.close()
        else:
            self.connection.abort()

    def on_gap(self, error: StreamGapError) -> None:
        if self.connection.state is SessionState.ENDED:
            self._pump.close()
        else:
            self.connection.lost_bytes(error)

    def on_finished(self) -> None:
        self.connection.finished()

    def _tell(self, event: Event) -> None:
        if self.listener is not None:
            self.listener(event)
