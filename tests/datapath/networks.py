"""Where datapaths are tried: each brings its own network, with a mobile node and a server that the test plays."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import ip_address
from typing import Protocol, TypeAlias

from msocks.datapath.interface import Datapath
from msocks.datapath.relay import RelayDatapath
from msocks.protocol.leg import DatapathReason
from msocks.transport.reactor import Reactor


class Network(Protocol):
    """Makes the legs of sessions. All sockets are connected and non-blocking; who asked for them closes them."""

    @property
    def datapath(self) -> Datapath:
        """The one that is tried."""

    def mobile_leg(self) -> tuple[socket.socket, socket.socket]:
        """The mobile node's end and the proxy's, whose listener the datapath has prepared."""

    def server_leg(self, waiting: socket.socket) -> tuple[socket.socket, socket.socket]:
        """The server's end and the proxy's, which the datapath has prepared for the leg that waits for it."""


MakeNetwork: TypeAlias = Callable[[Reactor], AbstractContextManager[Network]]


class _Loopback:
    """All three on one host."""

    def __init__(self, datapath: Datapath, proxy: socket.socket, server: socket.socket) -> None:
        self.datapath = datapath
        self._proxy = proxy
        self._server = server

    def mobile_leg(self) -> tuple[socket.socket, socket.socket]:
        mobile = socket.socket()
        return _connected(mobile, self._proxy)

    def server_leg(self, waiting: socket.socket) -> tuple[socket.socket, socket.socket]:
        leg = socket.socket()
        host, port = self._server.getsockname()
        self.datapath.prepare_server_leg(leg, destination=(ip_address(host), port), leg=waiting, smallest_mtu=1500)
        near, far = _connected(leg, self._server)
        return far, near


def _connected(sock: socket.socket, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    sock.connect(listener.getsockname())
    accepted, _ = listener.accept()
    sock.setblocking(False)
    accepted.setblocking(False)
    return sock, accepted


@contextmanager
def relay(reactor: Reactor) -> Iterator[Network]:
    datapath = RelayDatapath(reactor, DatapathReason.CHOSEN_BY_OPERATOR)
    with socket.socket() as proxy, socket.create_server(("127.0.0.1", 0)) as server:
        proxy.bind(("127.0.0.1", 0))
        datapath.prepare_listener(proxy)
        proxy.listen()
        yield _Loopback(datapath, proxy, server)
        datapath.close()


NETWORKS: tuple[MakeNetwork, ...] = (relay,)
