"""Connections that this host would forward for others (`msocks transparent --router`): taken in the server's name.

The kernel has accepted them where TPROXY brings them; the local address of each is the destination that was meant. What
a network would do to a connection is all that can be said to the other host: it is reset where there is no server.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Any

from msocks.agent.local_port import ProgramRequest, cannot_accept, without_delay
from msocks.errors import ConfigurationError, MsocksError
from msocks.transport.acceptor import Acceptor
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint
from msocks.values.origin import Origin

_SO_ACCEPTCONN, _SO_DOMAIN, _SO_PROTOCOL = socket.SO_ACCEPTCONN, socket.SO_DOMAIN, socket.SO_PROTOCOL


class RoutedAnswer:
    """Nothing is ever said to a host that knows of no proxy."""

    name = "routed"

    def grant(self, bound: Endpoint | None) -> bytes:
        del bound
        return b""

    def refuse(self, error: MsocksError) -> None:
        del error

    def take_trailing(self) -> bytes:
        return b""


class RoutedPort:
    """See the module."""

    def __init__(
        self,
        reactor: Reactor,
        listeners: Iterable[socket.socket],
        tag: str | None,
        on_request: Callable[[ProgramRequest], None],
    ) -> None:
        """
        Args:
            reactor: Watches the sockets.
            listeners: Listening; owned, also where this raises.
            tag: Of all the flows.
            on_request: Takes the requests.

        Raises:
            ConfigurationError: They are no listening TCP sockets.
        """
        given = list(listeners)
        if not given or not all(_listens(each) for each in given):
            for each in given:
                each.close()
            raise ConfigurationError(
                "the router has brought no listening sockets", remedy="restart the agent: update both"
            )
        self._tag = tag
        self._on_request = on_request
        self._own = {each.getsockname()[:2] for each in given}
        for each in given:
            each.setblocking(False)
        self._acceptor = Acceptor(reactor, self._accepted, cannot_accept)
        self._acceptor.add(given)

    @property
    def listeners(self) -> list[socket.socket]:
        """Where connections are accepted."""
        return self._acceptor.listeners

    def close(self) -> None:
        """Stop listening."""
        self._acceptor.close()

    def _accepted(self, sock: socket.socket, peer: tuple[Any, ...]) -> None:
        meant = sock.getsockname()
        if meant[:2] in self._own:  # somebody of this host has found the port; it would lead here again
            sock.close()
            return
        without_delay(sock)
        with contextlib.suppress(OSError):  # another host may vanish without a word, unlike a program
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        origin = Origin(tag=self._tag, source=Endpoint.from_sockaddr(peer).address)
        self._on_request(ProgramRequest(sock, RoutedAnswer(), Endpoint.from_sockaddr(meant), origin))


def _listens(sock: socket.socket) -> bool:
    return (
        sock.family in (socket.AF_INET, socket.AF_INET6)
        and sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) == socket.IPPROTO_TCP
        and bool(sock.getsockopt(socket.SOL_SOCKET, _SO_ACCEPTCONN))
    )
