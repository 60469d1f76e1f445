"""Answers path probes: UDP datagrams that prove their sender's key, from the address to which they came."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from msocks.errors import ProtocolError
from msocks.protocol.probe import PROBE_BYTES, Probe, ProbeAnswer, decode_probe, encode_probe
from msocks.proxy.associations import Association
from msocks.proxy.listener import IP_PKTINFO
from msocks.transport.reactor import READABLE, Reactor
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId

_BATCH = 64
_ANCILLARY_BYTES = socket.CMSG_SPACE(20)  # struct in6_pktinfo, the larger one

# struct in_pktinfo: interface, address to answer from, address in the header
_IN_PKTINFO = struct.Struct("=i4s4s")
# struct in6_pktinfo: address, interface
_IN6_PKTINFO = struct.Struct("=16si")


class ProbeResponder:
    """Answers on one socket. Whatever is malformed, of an unknown association or wrongly MACed gets no answer.

    An answer is as long as its probe, so nobody can use the proxy to amplify.
    """

    def __init__(
        self, reactor: Reactor, sock: socket.socket, find: Callable[[AssociationId], Association | None]
    ) -> None:
        """
        Args:
            reactor: Watches the socket.
            sock: From `msocks.proxy.listener`; it stays the listener's.
            find: Gives the association of an id.
        """
        self._reactor = reactor
        self._sock = sock
        self._find = find
        reactor.watch(sock.fileno(), self._on_events)

    def close(self) -> None:
        """Answer nothing more."""
        self._reactor.unwatch(self._sock.fileno())

    def _on_events(self, events: int) -> None:
        if not events & READABLE:
            return
        for _ in range(_BATCH):
            try:
                # One byte more than a probe, to see what is too long.
                datagram, ancillary, _, sockaddr = self._sock.recvmsg(PROBE_BYTES + 1, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about an earlier answer
            answer = self._answer(datagram, sockaddr)
            if answer is not None:
                try:
                    self._sock.sendmsg([answer], _from_there(ancillary), 0, sockaddr)
                except OSError:
                    pass  # a probe may be lost anywhere on its way
        self._reactor.call_soon(lambda: self._on_events(READABLE))

    def _answer(self, datagram: bytes, sockaddr: tuple[Any, ...]) -> bytes | None:
        try:
            signed = decode_probe(datagram)
        except ProtocolError:
            return None
        probe = signed.message
        association = self._find(probe.association)
        if association is None or not isinstance(probe, Probe) or not signed.verify(association.probe_key_up):
            return None
        observed = Endpoint.from_sockaddr(sockaddr)
        answer = ProbeAnswer(probe.association, probe.sequence, probe.time, observed)
        return encode_probe(answer, association.probe_key_down)


def _from_there(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """The control message that makes an answer leave from the address to which the datagram came."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            _, local, _ = _IN_PKTINFO.unpack(data)
            return [(level, kind, _IN_PKTINFO.pack(0, local, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            local, interface = _IN6_PKTINFO.unpack(data)
            # A link-local address means nothing without its interface; any other is routed.
            scope = interface if local[0] == 0xFE and local[1] & 0xC0 == 0x80 else 0
            return [(level, kind, _IN6_PKTINFO.pack(local, scope))]
    return []
