"""Connections of other hosts, which this host forwards, come to the agent: TPROXY, in a table that goes with its owner.

A packet that comes in by one of the named interfaces, and is neither for this host nor for what is left alone, is given
to the agent's listening socket as it is. The socket that is accepted then has the packet's destination as its own
address, and so the agent knows where to. Where the agent does not listen any more, tproxy finds no socket, and the
packet is forwarded as ever.

Connections that stood before are forwarded on: only a SYN begins anything here.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from msocks.interception import diversion
from msocks.interception.agent_link import AgentLink
from msocks.interception.keeper import networks_of
from msocks.interception.local_addresses import AddressNews, local_networks
from msocks.interception.messages import Reach
from msocks.interception.messages import Router as Greeting
from msocks.interception.nftables import NftablesSocket
from msocks.interception.refusal import CannotIntercept

TABLE = "msocks_transparent"
"""The table of nftables, of the family inet."""

_BACKLOG = 1024
_PLACES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_NEVER = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "::/127", "fe80::/10")
_IPV6_TRANSPARENT = 75

Networks = Iterable[IPv4Network | IPv6Network]


class Router:
    """See the module."""

    def __init__(
        self, path: str, interfaces: Sequence[str], excluded: Networks, *, tag: str | None, lets_go_in_outage: bool
    ) -> None:
        """Divert from now on.

        Args:
            path: The agent's socket for runs.
            interfaces: Where packets that are diverted come in.
            excluded: Destinations that are left alone, besides the proxy's addresses and this host's own networks.
            tag: Of all its flows.
            lets_go_in_outage: Whether nothing new is diverted while the agent says that it reaches nobody, as while it
                hangs.

        Raises:
            AgentUnavailable, RunRefused: As `AgentLink`.
            CannotIntercept: The privilege is missing, or the kernel lacks something.
        """
        self._interfaces = tuple(interfaces)
        self._excluded = frozenset(excluded)
        self._ports: dict[int, int] = {}
        self._proxy: tuple[IPv4Network | IPv6Network, ...] = ()
        self._lets_go_in_outage = lets_go_in_outage
        self._reaches = True
        self._hangs = False
        self._stands = False
        self._stack = contextlib.ExitStack()
        try:
            self._nftables = NftablesSocket()
            self._stack.callback(self._nftables.close)
            self._link = AgentLink(path, Greeting(tag, reach=True), self._listeners)
            self._stack.callback(self._link.close)
            self._news = AddressNews()
            self._stack.callback(self._news.close)
            diversion.remove()
            self._stack.callback(diversion.remove)
            diversion.install()
            self._stack.callback(self._take_down)
            self._begin()
        except BaseException:
            self._stack.close()
            raise

    @property
    def descriptors(self) -> set[int]:
        agent = self._link.fileno()
        return {self._news.fileno()} if agent is None else {self._news.fileno(), agent}

    @property
    def looks_for_agent(self) -> bool:
        return True

    def serve(self, ready: Collection[int]) -> None:
        if self._news.fileno() in ready:
            self._news.drain()
            if self._stands:
                self._put_up()
        if self._link.fileno() in ready:
            for said in self._link.hear():
                if isinstance(said, Reach) and said.usable is not self._reaches:
                    self._reaches = said.usable
                    self._put_up()
        if self._link.is_connected and self._link.hangs is not self._hangs:
            self._hangs = not self._hangs
            self._put_up()
        if not self._link.is_connected:
            self._take_down()
            if self._link.reconnect():
                self._begin()

    def close(self) -> None:
        """Take everything away; packets are forwarded as ever."""
        self._stack.close()

    def _begin(self) -> None:
        self._proxy = tuple(networks_of(self._link.ready.proxy))
        self._reaches = True
        self._hangs = False
        self._put_up()

    def _put_up(self) -> None:
        near = {*local_networks(), *self._excluded, *self._proxy}
        earlier = f"delete table inet {TABLE}\n" if self._stands else ""
        self._nftables.run(earlier + self._rules(near))
        self._stands = True

    def _take_down(self) -> None:
        if self._stands:
            self._stands = False
            self._nftables.run(f"delete table inet {TABLE}\n")

    def _listeners(self) -> list[socket.socket]:
        """Where packets are given to: sockets that may accept in the name of every address (IP_TRANSPARENT)."""
        made: list[socket.socket] = []
        self._ports.clear()
        for family, place in _PLACES.items():
            try:
                listener = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # a host without IPv6
            try:
                if family == socket.AF_INET:
                    listener.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
                else:
                    listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
                listener.bind((place, 0))
                listener.listen(_BACKLOG)
            except PermissionError:
                listener.close()
                raise CannotIntercept(
                    "no socket for connections of other hosts can be had: Operation not permitted",
                    remedy="run as root (sudo), or with CAP_NET_ADMIN",
                ) from None
            except OSError:
                listener.close()
                continue
            self._ports[family] = listener.getsockname()[1]
            made.append(listener)
        return made

    def _rules(self, near: Networks) -> str:
        known = [*near, *(IPv6Network(text) if ":" in text else IPv4Network(text) for text in _NEVER)]
        direct4 = collapse_addresses(network for network in known if isinstance(network, IPv4Network))
        direct6 = collapse_addresses(network for network in known if isinstance(network, IPv6Network))
        diverts = not self._hangs and (self._reaches or not self._lets_go_in_outage)
        begin = {
            socket.AF_INET: "meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:",
            socket.AF_INET6: "meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:",
        }
        diverting = "\n        ".join(
            f"{begin[socket.AddressFamily(family)]}{port} meta mark set {diversion.MARK:#x} accept"
            for family, port in self._ports.items()
            if diverts
        )
        return f"""
table inet {TABLE} {{
    flags owner
    set direct4 {{
        type ipv4_addr
        flags interval
        elements = {{ {", ".join(map(str, direct4))} }}
    }}
    set direct6 {{
        type ipv6_addr
        flags interval
        elements = {{ {", ".join(map(str, direct6))} }}
    }}
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname != {{ {", ".join(f'"{name}"' for name in self._interfaces)} }} accept
        meta l4proto != tcp accept
        tcp flags & (fin | syn | rst | ack) != syn socket transparent 1 meta mark set {diversion.MARK:#x} accept
        tcp flags & (fin | syn | rst | ack) != syn accept
        fib daddr type != unicast accept
        ip daddr @direct4 accept
        ip6 daddr @direct6 accept
        {diverting}
    }}
}}
"""
