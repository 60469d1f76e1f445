"""UDP probes through one link to one address of the proxy."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from msocks.client.association import Association, AssociationKeys
from msocks.errors import ProtocolError
from msocks.protocol.probe import (
    PROBE_BYTES,
    Position,
    PositionQuery,
    Probe,
    ProbeAnswer,
    ProbeMessage,
    decode_probe,
    encode_probe,
    probe_key,
)
from msocks.transport.arrival_stamp import STAMP_BYTES, age_s, stamp_arrivals
from msocks.transport.dial import bound_socket
from msocks.transport.reactor import READABLE, Reactor
from msocks.values.endpoint import Address, Endpoint
from msocks.values.ids import SessionId
from msocks.values.link import Family, Link


class ProbeKeys:
    """The keys for probes, derived anew whenever the association has new ones."""

    def __init__(self, association: Association) -> None:
        self._association = association
        self._of: AssociationKeys | None = None
        self._up = self._down = b""

    def pair(self) -> tuple[bytes, bytes] | None:
        """Client-to-proxy and proxy-to-client; None before the association stands."""
        keys = self._association.keys
        if keys is None:
            return None
        if keys is not self._of:
            self._of, self._up, self._down = keys, probe_key(keys.up), probe_key(keys.down)
        return self._up, self._down


class ProbeSocket:
    """See the module. Answers that are not the proxy's are ignored."""

    def __init__(
        self,
        reactor: Reactor,
        association: Association,
        keys: ProbeKeys,
        link: Link,
        endpoint: Endpoint,
        on_answer: Callable[[ProbeAnswer, float], None],
        on_position: Callable[[Position], None],
        on_refused: Callable[[], None],
    ) -> None:
        """
        Args:
            reactor: Tells when an answer is there.
            association: Gives identifier and numbers.
            keys: Authenticate both ways.
            link: Which way to go.
            endpoint: Where to; an address.
            on_answer: Called with each answer of the proxy, and the time.monotonic() at which the kernel received it:
                how long this process took to look must not count as round-trip time.
            on_position: Called with each answer to `ask_position`.
            on_refused: Called when an ICMP error says that nobody listens there.

        Raises:
            OSError: The link cannot be used.
        """
        assert endpoint.address is not None
        self.endpoint = endpoint
        self._reactor = reactor
        self._association = association
        self._keys = keys
        self._on_answer = on_answer
        self._on_position = on_position
        self._on_refused = on_refused
        self._sock = bound_socket(link, Family.of(endpoint.address), socket.SOCK_DGRAM)
        try:
            stamp_arrivals(self._sock)
            self._sock.connect((str(endpoint.host), endpoint.port))
            self.source: Address | None = Endpoint.from_sockaddr(self._sock.getsockname()).address
        except OSError:
            self._sock.close()
            raise
        reactor.watch(self._sock.fileno(), self._on_events)

    def send(self, number: int, time_us: int) -> bool:
        """Send the probe of that number; False where it cannot be sent."""
        return self._send(Probe(self._association.id, number, time_us))

    def ask_position(self, number: int, session: SessionId) -> bool:
        """Ask how far a session's upstream has come; the number is one of a probe. False where it cannot be sent."""
        return self._send(PositionQuery(self._association.id, number, session))

    def _send(self, message: ProbeMessage) -> bool:
        keys = self._keys.pair()
        if keys is None:
            return False
        try:
            self._sock.send(encode_probe(message, keys[0]))
        except ConnectionRefusedError:  # an earlier one
            self._on_refused()
            return False
        except OSError:
            return False  # also where an ICMP error came back for an earlier one; the next may get through
        return True

    def close(self) -> None:
        """Listen no more."""
        self._reactor.unwatch(self._sock.fileno())
        self._sock.close()

    def receive(self) -> None:
        """Take what has arrived and was not reported yet. A loop that was held up may run its timers before that."""
        while self._sock.fileno() >= 0:  # an answer may make the owner close this socket
            try:
                datagram, ancillary, _flags, _source = self._sock.recvmsg(PROBE_BYTES + 1, STAMP_BYTES)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._on_refused()
                continue
            except OSError:
                continue  # an ICMP error, now fetched
            answer = self._verified(datagram)
            if isinstance(answer, ProbeAnswer):
                self._on_answer(answer, time.monotonic() - age_s(ancillary))
            elif answer is not None:
                self._on_position(answer)

    def _on_events(self, events: int) -> None:
        if events & READABLE:
            self.receive()

    def _verified(self, datagram: bytes) -> ProbeAnswer | Position | None:
        keys = self._keys.pair()
        try:
            signed = decode_probe(datagram)
        except ProtocolError:
            return None
        message = signed.message
        if keys is None or not isinstance(message, ProbeAnswer | Position) or not signed.verify(keys[1]):
            return None
        return message if message.association == self._association.id else None
