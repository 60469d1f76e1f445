"""Where datapaths are tried: each on its networks, with a mobile node and a server that the test plays."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from ipaddress import ip_address
from itertools import cycle
from pathlib import Path
from typing import Protocol, TypeAlias

from tests.datapath.late_server import LateServer
from tests.datapath.three_hosts import (
    MOBILE_LINKS,
    SERVER_LINK,
    ThreeHosts,
    far_address,
    near_address,
    three_hosts,
)

from msocks.datapath.interface import Datapath
from msocks.datapath.relay import RelayDatapath
from msocks.datapath.splice import PortRange, open_splice
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.transport.reactor import Reactor

V4, V6 = socket.AF_INET, socket.AF_INET6


class Network(Protocol):
    """Makes the legs of sessions. All sockets are connected and non-blocking; who asked for them closes them."""

    @property
    def datapath(self) -> Datapath:
        """The one that is tried."""

    def mobile_leg(self) -> tuple[socket.socket, socket.socket]:
        """The mobile node's end and the proxy's, whose listener the datapath has prepared."""

    def server_leg(self, waiting: socket.socket) -> tuple[socket.socket, socket.socket]:
        """The server's end and the proxy's, which the datapath has prepared for the leg that waits for it.

        The server's is a `LateServer`: in a splice it stands when the mobile has answered the first reply.
        """


MakeDatapath: TypeAlias = Callable[[Reactor], Datapath]
MakeNetwork: TypeAlias = Callable[[Reactor], AbstractContextManager[Network]]


class _Loopback:
    """All three on one host."""

    def __init__(self, datapath: Datapath, proxy: socket.socket, server: socket.socket) -> None:
        self.datapath = datapath
        self._proxy = proxy
        self._server = server

    def mobile_leg(self) -> tuple[socket.socket, socket.socket]:
        return _connected(socket.socket(), self._proxy)

    def server_leg(self, waiting: socket.socket) -> tuple[socket.socket, socket.socket]:
        leg = socket.socket()
        host, port = self._server.getsockname()
        self.datapath.prepare_server_leg(leg, destination=(ip_address(host), port), leg=waiting, smallest_mtu=1500)
        return _server_of(leg, self._server, self.datapath), leg


class _Veth:
    """Each on a host of its own. The mobile's legs take turns between its links."""

    def __init__(self, datapath: Datapath, hosts: ThreeHosts, proxy: socket.socket, server: socket.socket) -> None:
        self.datapath = datapath
        self._hosts = hosts
        self._proxy = proxy
        self._server = server
        self._links = cycle(MOBILE_LINKS)

    def mobile_leg(self) -> tuple[socket.socket, socket.socket]:
        mobile = self._hosts.mobile.socket(self._proxy.family)
        return _connected(mobile, self._proxy, str(near_address(next(self._links), mobile.family)))

    def server_leg(self, waiting: socket.socket) -> tuple[socket.socket, socket.socket]:
        leg = self._hosts.proxy.socket(self._server.family)
        host, port = self._server.getsockname()[:2]
        self.datapath.prepare_server_leg(leg, destination=(ip_address(host), port), leg=waiting, smallest_mtu=1500)
        return _server_of(leg, self._server, self.datapath), leg


def _server_of(leg: socket.socket, listener: socket.socket, datapath: Datapath) -> LateServer:
    """Connect a server leg to a listener. In a splice the mobile's first word ends the handshake, else it has ended."""
    leg.connect(listener.getsockname()[:2])
    leg.setblocking(False)
    server = LateServer(listener, leg)
    if datapath.kind is not DatapathKind.SPLICE:
        assert server.stands(5)
    return server


def _connected(
    sock: socket.socket, listener: socket.socket, host: str | None = None
) -> tuple[socket.socket, socket.socket]:
    """Connect to a listener, at `host` where it listens on all addresses."""
    own, port = listener.getsockname()[:2]
    sock.connect((host or own, port))
    accepted, _ = listener.accept()
    sock.setblocking(False)
    accepted.setblocking(False)
    return sock, accepted


def on_loopback(open_datapath: MakeDatapath) -> MakeNetwork:
    """Mobile, proxy and server on the host of the tests, over IPv4."""

    @contextmanager
    def make(reactor: Reactor) -> Iterator[Network]:
        with ExitStack() as stack:
            datapath = open_datapath(reactor)
            stack.callback(datapath.close)
            proxy = stack.enter_context(socket.socket())
            proxy.bind(("127.0.0.1", 0))
            datapath.prepare_listener(proxy)
            proxy.listen()
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            yield _Loopback(datapath, proxy, server)

    return make


def over_veth(
    open_datapath: MakeDatapath,
    mobile: socket.AddressFamily = V4,
    server: socket.AddressFamily = V4,
    lay_out: Callable[[ThreeHosts], None] = lambda _hosts: None,
) -> MakeNetwork:
    """Three hosts: the families are those of the mobile's legs and of the server leg.

    `open_datapath` is called on the proxy, where /sys/fs/bpf is empty, and goes when the network goes; before it
    `lay_out` may change the links.
    """

    @contextmanager
    def make(reactor: Reactor) -> Iterator[Network]:
        with ExitStack() as stack:
            hosts = stack.enter_context(three_hosts())
            lay_out(hosts)
            datapath = open_datapath(reactor)
            stack.callback(datapath.close)
            near = stack.enter_context(hosts.proxy.socket(mobile))
            near.bind(("0.0.0.0" if mobile == V4 else "::", 0))
            datapath.prepare_listener(near)
            near.listen()
            far = stack.enter_context(hosts.server.socket(server))
            far.bind((str(far_address(SERVER_LINK, server)), 0))
            far.listen()
            yield _Veth(datapath, hosts, near, far)

    return make


def relay(reactor: Reactor) -> Datapath:
    return RelayDatapath(reactor, DatapathReason.CHOSEN_BY_OPERATOR)


def splice(reactor: Reactor, *, slots: int = 64, ports: PortRange | None = None) -> Datapath:
    return open_splice(
        reactor,
        pin_directory=Path("/sys/fs/bpf/msocks/test"),
        ports=ports or PortRange(16384, 20479),
        slots=slots,
        half_closed_s=86400.0,
    )


NETWORKS: dict[str, MakeNetwork] = {
    "relay": on_loopback(relay),
    "relay_over_veth": over_veth(relay),
    "splice": over_veth(splice),
}
"""Every test of a bench runs on each of these, and has to pass on all of them."""

_MIXTURES = {"ipv6": (V6, V6), "ipv4_to_ipv6": (V4, V6), "ipv6_to_ipv4": (V6, V4)}

FAMILY_NETWORKS: dict[str, MakeNetwork] = {
    f"{name}_{mixture}": over_veth(open_datapath, mobile, server)
    for name, open_datapath in {"relay": relay, "splice": splice}.items()
    for mixture, (mobile, server) in _MIXTURES.items()
}
"""Tests that are marked `every_family` run on these as well: mobile's family, server's family."""
