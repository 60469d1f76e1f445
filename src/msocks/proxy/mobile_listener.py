"""The listeners of mobile nodes: asked for on a control channel, and told there of every peer that connects."""

from __future__ import annotations

import socket
from typing import Protocol

from msocks.protocol.inbound import Incoming, Listen, Listening, ListenStatus
from msocks.proxy.associations import Association, Channel
from msocks.proxy.inbound import InboundRegistry, Listener, Refusal, Wanted
from msocks.proxy.proxied_session import ProxiedSession
from msocks.values.endpoint import Address, Endpoint


class MobileHost(Protocol):
    """What they need of the proxy."""

    @property
    def inbound(self) -> InboundRegistry:
        """All listeners."""

    def accept_mobile(
        self, association: Association, client: Endpoint, sock: socket.socket, peer: Endpoint
    ) -> ProxiedSession | None:
        """Begin the session of a peer's connection, without a leg; None where a limit refuses it."""


class MobileListener:
    """One listener of an association. Implements `msocks.proxy.inbound.ListenerOwner`."""

    __slots__ = ("_announced", "_association", "_host", "_listener", "_number")

    def __init__(
        self, host: MobileHost, association: Association, message: Listen, near: Address, client: Endpoint
    ) -> None:
        self._host = host
        self._association = association
        self._number = message.number
        self._announced: dict[ProxiedSession, Incoming] = {}
        wanted = Wanted(association.user, message.port, message.once, message.peer, near, client)
        self._listener = host.inbound.open(wanted, self)

    @property
    def is_reachable(self) -> bool:
        return bool(self._association.channels)

    @property
    def is_over(self) -> bool:
        """Whether it accepts nothing more, and all that it has accepted was taken."""
        return self._listener.closed and not self._listener.untaken

    def say_state(self, channel: Channel) -> None:
        """The client asks again."""
        told = self._listener.told
        if told is not None and not self._listener.closed:
            channel.say(Listening(self._number, ListenStatus.OPEN, told))

    def say_untaken(self, channel: Channel) -> None:
        """A new channel: what was said before may not have arrived."""
        waiting = self._listener.untaken
        self._announced = {session: self._announced[session] for session in waiting}
        for announcement in self._announced.values():
            channel.say(announcement)

    def close(self) -> None:
        """The client wants it no more, or is gone."""
        self._association.listeners.pop(self._number, None)
        self._host.inbound.close_listener(self._listener)

    # -- ListenerOwner ----------------------------------------------------------------------------------------------

    def on_listening(self, listener: Listener) -> None:
        self._association.announce(Listening(self._number, ListenStatus.OPEN, listener.told))

    def on_refused(self, refusal: Refusal) -> None:
        self._association.listeners.pop(self._number, None)
        self._association.announce(Listening(self._number, refusal.status, None, refusal.text))

    def on_accepted(self, listener: Listener, sock: socket.socket, peer: Endpoint) -> ProxiedSession | None:
        bound = Endpoint.from_sockaddr(sock.getsockname())
        session = self._host.accept_mobile(self._association, listener.wanted.client, sock, peer)
        if session is not None:
            for taken in [each for each in self._announced if not each.awaits_first_leg]:
                del self._announced[taken]
            announcement = self._announced[session] = Incoming(self._number, session.record.session, peer, bound)
            self._association.announce(announcement)
        return session


def listen(
    host: MobileHost, association: Association, channel: Channel, message: Listen, near: Address, client: Endpoint
) -> None:
    """A LISTEN has come. `near` is the proxy's address that `client` has reached."""
    listeners = association.listeners
    known = listeners.get(message.number)
    if known is not None:
        known.say_state(channel)
        return
    for number in [number for number, listener in listeners.items() if listener.is_over]:
        del listeners[number]
    listeners[message.number] = MobileListener(host, association, message, near, client)
