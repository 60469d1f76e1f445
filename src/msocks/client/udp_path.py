"""One path of a UDP flow: a socket through one link to one address of the proxy."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable

from msocks.errors import ProtocolError
from msocks.protocol.udp_flow import Down, FlowStatus, State, decode_udp_flow
from msocks.transport.datagram_socket import DatagramSocket, SockAddr, allow_fragments
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Address, Endpoint

KEEP_ALIVE_S = 15.0
"""A path is asked for an answer when for so long nothing was sent or nothing was heard: NATs forget UDP mappings after
30 s often, against RFC 4787, which asks for 2 minutes."""
ASK_AGAIN_S = 1.0
UNANSWERED = 3
"""So many questions without an answer, and the path is dead."""


class UdpPath:
    """See the module. Hands over what is of the proxy, and knows what it has been asked.

    Attributes:
        generation: Of the flow's path.
        link: Name of the link.
        source: The local address.
        key_down: Authenticates what the proxy sends.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        generation: int,
        link: str,
        key_down: bytes,
        on_message: Callable[[UdpPath, State | Down], None],
        on_failure: Callable[[UdpPath, OSError], None],
    ) -> None:
        """
        Args:
            reactor: Watches the socket, and keeps the time.
            sock: Connected to the proxy's port; owned from now on.
            generation: See the attribute.
            link: See the attribute.
            key_down: See the attribute.
            on_message: Called with each authentic message. It may have come before.
            on_failure: Called when the kernel says that the path does not work.
        """
        allow_fragments(sock)
        self.generation = generation
        self.link = link
        self.source: Address | None = Endpoint.from_sockaddr(sock.getsockname()).address
        self.key_down = key_down
        self._loop = reactor.loop
        self._on_message = on_message
        self._on_failure = on_failure
        self._asked: set[int] = set()
        self._unanswered = 0
        self._sent_at = self._heard_at = self._asked_at = -math.inf
        self._socket = DatagramSocket(reactor, sock, self._receive, self._failed)

    @property
    def sock(self) -> socket.socket:
        """The socket, to ask the kernel about."""
        return self._socket.sock

    @property
    def dropped(self) -> int:
        """Datagrams that could not be sent."""
        return self._socket.too_large + self._socket.not_sent

    @property
    def is_dead(self) -> bool:
        """Whether questions are not answered."""
        return self._unanswered >= UNANSWERED and self._loop.time() >= self._asked_at + ASK_AGAIN_S

    def send(self, datagram: bytes) -> bool:
        """Send; False where it could not be, and was counted."""
        self._sent_at = self._loop.time()
        return self._socket.send(datagram)

    def ask(self, number: int, datagram: bytes) -> None:
        """Send what the proxy answers with a State of that number."""
        self._asked.add(number)
        self._unanswered += 1
        self._asked_at = self._loop.time()
        self.send(datagram)

    def next_question(self) -> float:
        """When the proxy is to be asked, by the loop's clock."""
        if self._unanswered:
            return self._asked_at + ASK_AGAIN_S
        return min(self._sent_at, self._heard_at) + KEEP_ALIVE_S

    def close(self) -> None:
        """Send and hear nothing more."""
        self._socket.close()

    def _receive(self, datagram: bytes, _source: SockAddr) -> None:
        try:
            signed = decode_udp_flow(datagram)
        except ProtocolError:
            return
        message = signed.message
        if not isinstance(message, State | Down) or not signed.verify(self.key_down):
            return
        if isinstance(message, State):
            # That a flow has ended stays true; anything else may be an answer that was recorded.
            if message.number not in self._asked and message.status is not FlowStatus.ENDED:
                return
            self._asked.clear()  # the answer to an earlier question says nothing new
        self._heard_at = self._loop.time()
        self._unanswered = 0
        self._on_message(self, message)

    def _failed(self, error: OSError) -> None:
        # That nobody listens at the proxy says nothing of the path; a proxy that is restarted comes back there.
        if not isinstance(error, ConnectionRefusedError):
            self._on_failure(self, error)
