"""BIND of a plain SOCKS5 client (RFC 1928 sections 4 and 6): two replies, and then the peer's connection."""

from __future__ import annotations

import socket
from typing import Protocol

from msocks.protocol.inbound import ListenStatus
from msocks.protocol.socks5_wire import ReplyCode
from msocks.proxy.inbound import InboundRegistry, Listener, Refusal, Wanted
from msocks.proxy.proxied_session import ProxiedSession
from msocks.proxy.waiting_leg import WaitingLeg
from msocks.values.endpoint import Endpoint

_REPLY_CODES = {
    ListenStatus.NOT_ALLOWED: ReplyCode.NOT_ALLOWED,
    ListenStatus.TIMED_OUT: ReplyCode.TTL_EXPIRED,
}


class BindingLeg(WaitingLeg, Protocol):
    """The client's connection."""

    def listening(self, bound: Endpoint) -> None:
        """Say the first reply."""

    def called_by(self, peer: Endpoint) -> None:
        """The reply that `grant` says is the second one, with the peer's address."""

    def cannot_bind(self, code: ReplyCode) -> None:
        """Say `code`, as the first or the second reply, and close."""


class BindHost(Protocol):
    """What a BIND needs of the proxy."""

    @property
    def inbound(self) -> InboundRegistry:
        """All listeners."""

    def accept_plain(self, leg: WaitingLeg, user: str, sock: socket.socket, peer: Endpoint) -> ProxiedSession | None:
        """Begin the session of a peer's connection; None where the leg was answered, and `sock` is not taken."""


class PlainBind:
    """See the module. Implements `msocks.proxy.inbound.ListenerOwner`."""

    __slots__ = ("_host", "_leg", "_listener", "_user", "session")

    is_reachable = True

    def __init__(self, host: BindHost, leg: BindingLeg, user: str, peer: Endpoint) -> None:
        self.session: ProxiedSession | None = None
        self._host = host
        self._leg = leg
        self._user = user
        near = Endpoint.from_sockaddr(leg.sock.getsockname()).address
        assert near is not None
        client = Endpoint.from_sockaddr(leg.sockaddr)
        self._listener = host.inbound.open(Wanted(user, 0, True, peer, near, client), self)

    def cancel(self) -> None:
        """The client is gone."""
        self._host.inbound.close_listener(self._listener)

    # -- ListenerOwner ----------------------------------------------------------------------------------------------

    def on_listening(self, listener: Listener) -> None:
        assert listener.told is not None
        self._leg.listening(listener.told)

    def on_refused(self, refusal: Refusal) -> None:
        self._leg.cannot_bind(_REPLY_CODES.get(refusal.status, ReplyCode.GENERAL_FAILURE))

    def on_accepted(self, listener: Listener, sock: socket.socket, peer: Endpoint) -> ProxiedSession | None:
        del listener
        self._leg.called_by(peer)
        self.session = self._host.accept_plain(self._leg, self._user, sock, peer)
        return self.session
