"""Answers path probes and position queries: UDP datagrams that prove their sender's key, from where they came to.

What comes to the same port and belongs to a UDP flow is passed on.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from msocks.errors import ProtocolError
from msocks.protocol.fields import MAX_U64
from msocks.protocol.probe import (
    Position,
    PositionQuery,
    Probe,
    ProbeAnswer,
    ProbeMessage,
    decode_probe,
    encode_probe,
)
from msocks.protocol.udp_flow import is_udp_flow
from msocks.proxy.associations import Association
from msocks.proxy.datagram_way import ANCILLARY_BYTES, DatagramWay
from msocks.transport.arrival_stamp import age_s
from msocks.transport.datagram_socket import MOST_BYTES
from msocks.transport.reactor import READABLE, Reactor
from msocks.values.ids import AssociationId, SessionId

_BATCH = 64


class ProbeResponder:
    """Answers on one socket. Whatever is malformed, of an unknown association or wrongly MACed gets no answer.

    An answer is as long as its probe, so nobody can use the proxy to amplify.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        find: Callable[[AssociationId], Association | None],
        received: Callable[[str, SessionId], int | None],
        on_flow: Callable[[bytes, DatagramWay], None],
    ) -> None:
        """
        Args:
            reactor: Watches the socket.
            sock: From `msocks.proxy.listener`; it stays the listener's.
            find: Gives the association of an id.
            received: U of a user's session; None where there is no such session.
            on_flow: Called with what is to be read as a datagram of a UDP flow.
        """
        self._reactor = reactor
        self._sock = sock
        self._find = find
        self._received = received
        self._on_flow = on_flow
        reactor.watch(sock.fileno(), self._on_events)

    def close(self) -> None:
        """Answer nothing more."""
        self._reactor.unwatch(self._sock.fileno())

    def _on_events(self, events: int) -> None:
        if not events & READABLE:
            return
        for _ in range(_BATCH):
            try:
                datagram, ancillary, _, sockaddr = self._sock.recvmsg(MOST_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about an earlier answer
            way = DatagramWay(self._sock, sockaddr, ancillary)
            if is_udp_flow(datagram):
                self._on_flow(datagram, way)
                continue
            answer = self._answer(datagram, way)
            if answer is not None:
                way.send(answer)  # or not: a probe may be lost anywhere
        self._reactor.call_soon(lambda: self._on_events(READABLE))

    def _answer(self, datagram: bytes, way: DatagramWay) -> bytes | None:
        try:
            signed = decode_probe(datagram)
        except ProtocolError:
            return None
        question = signed.message
        association = self._find(question.association)
        if association is None or not signed.verify(association.probe_key_up):
            return None
        answer: ProbeMessage
        match question:
            case Probe(_, sequence, time):
                later = min(time + int(age_s(way.ancillary) * 1e6), MAX_U64)
                answer = ProbeAnswer(question.association, sequence, later, way.source)
            case PositionQuery(_, sequence, session):
                received = self._received(association.user, session)
                if received is None:
                    return None
                answer = Position(question.association, sequence, session, received)
            case _:
                return None
        return encode_probe(answer, association.probe_key_down)
