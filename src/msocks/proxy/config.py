"""What a proxy is told before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TypeAlias

from msocks.datapath.splice.ports import PortRange
from msocks.errors import ConfigurationError
from msocks.values.endpoint import Address, Endpoint

Network: TypeAlias = IPv4Network | IPv6Network

_HIGHEST_PORT = 65535
DEFAULT_SPLICE_PORTS = (16384, 32767)  # below what Linux gives to sockets that ask for any port


class DatapathChoice(StrEnum):
    """What the operator wants to carry the sessions."""

    AUTO = "auto"
    SPLICE = "splice"
    RELAY = "relay"


class StoreChoice(StrEnum):
    """Where it is kept whose the sessions are, for the next process."""

    SQLITE = "sqlite"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyLimits:
    """How much of everything at the same time; all counts are at least 1.

    Attributes:
        half_open: TCP connections that have not yet said what they want. One more, and the oldest is closed.
        half_open_per_source: The same from one IPv4 address or IPv6 /64.
        sessions: Sessions in all, parked ones included.
        sessions_per_user: Unless the user has a limit of his own.
        held_mib: MiB of bytes from servers that no mobile node has ACKed yet, of all sessions together, parked ones
            included. An idle session holds none, a relayed one at most some 4.5 MiB. At the limit nobody is cut off:
            sessions that hold 16 KiB or more read nothing from their servers until they hold less.
        held_mib_per_user: The same of one user's sessions.
        channels_per_user: Control channels, unless the user has a limit of his own.
        associations_per_user: Keys that are remembered. One more, and the one without channels for longest is dropped.
        resolutions: Host names being looked up; more wait.
        udp_associations: UDP associations in all, those of plain clients and of agents.
        udp_associations_per_user: The same of one user. Clients without password are no user.
        listeners: Ports at which peers may connect, in all: those of BIND, and published ones.
        listeners_per_user: The same of one user. Clients without password are no user.
        waiting_per_listener: Connections that a published port has accepted and its client has not taken yet.
        tombstones: Ended sessions whose end is remembered for late requests.
    """

    half_open: int = 2048
    half_open_per_source: int = 512
    sessions: int = 20_000
    sessions_per_user: int = 2_000
    held_mib: int = 1024
    held_mib_per_user: int = 256
    channels_per_user: int = 64
    associations_per_user: int = 64
    resolutions: int = 32
    udp_associations: int = 4096
    udp_associations_per_user: int = 256
    listeners: int = 1024
    listeners_per_user: int = 32
    waiting_per_listener: int = 64
    tombstones: int = 20_000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"the limit {name} is {getattr(self, name)}", remedy="give at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """Settings of one proxy; durations in seconds.

    Attributes:
        listen: TCP and UDP endpoints. Port 0 takes a free one. An IPv6 wildcard takes IPv4 as well, unless an IPv4
            wildcard with the same port stands beside it.
        state: The state directory.
        allow: Destinations that are allowed although they are denied by default.
        deny: Destinations that are denied, whatever `allow` says.
        open: Serve plain SOCKS5 clients without authentication.
        datapath: What carries the sessions.
        splice_ports: First and last of the local ports that the splice uses toward servers; nobody else may.
        store: Where it is kept whose the spliced sessions are, so that the next process can reconnect them.
        half_closed_s: How long a spliced session of which one direction has ended may be silent.
        detach_grace_s: How long a session waits for its next leg, and an association for its next channel.
        handshake_timeout_s: From a connection's beginning until it has said what it wants.
        connect_timeout_s: For resolving and connecting to a server, together.
        channel_idle_s: A control channel from which nothing comes for so long is closed; asked at half of that time.
        udp_idle_s: A UDP association of which nothing is heard for so long is ended.
        udp_address: Where plain clients are told to send their datagrams, if a NAT stands before the proxy: at most one
            address of each IP version. By default it is the one at which the client has reached the proxy.
        bind: Whether BIND is carried out: for one connection, at a port that the kernel chooses.
        bind_timeout_s: How long a BIND waits for its connection.
        publish: Spans of ports (first and last) at which users may publish services, by the user's name; ``*`` stands
            for everybody.
        inbound_address: What clients are told of where peers find such ports, if a NAT stands before the proxy: at
            most one address of each IP version. By default it is this host's address toward the peer or, where that is
            not known, the one at which the client has reached the proxy.
        take_timeout_s: How long a connection that a peer has made waits for its client, which may be without network.
        stop_grace_s: How long sessions may go on when the proxy stops.
        tombstone_s: How long the end of a session is remembered.
        limits: See `ProxyLimits`.
    """

    listen: tuple[Endpoint, ...]
    state: Path
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    open: bool = False
    datapath: DatapathChoice = DatapathChoice.AUTO
    splice_ports: tuple[int, int] = DEFAULT_SPLICE_PORTS
    store: StoreChoice = StoreChoice.SQLITE
    half_closed_s: float = 24 * 3600.0
    detach_grace_s: float = 24 * 3600.0
    handshake_timeout_s: float = 10.0
    connect_timeout_s: float = 30.0
    channel_idle_s: float = 180.0
    udp_idle_s: float = 300.0
    udp_address: tuple[Address, ...] = ()
    bind: bool = True
    bind_timeout_s: float = 180.0
    publish: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    inbound_address: tuple[Address, ...] = ()
    take_timeout_s: float = 60.0
    stop_grace_s: float = 5.0
    tombstone_s: float = 3600.0
    limits: ProxyLimits = field(default_factory=ProxyLimits)

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigurationError("the proxy has nothing to listen on", remedy="give --listen HOST:PORT")
        PortRange(*self.splice_ports)  # which says what is wrong with it
        durations = ("half_closed_s", "detach_grace_s", "handshake_timeout_s", "connect_timeout_s", "channel_idle_s")
        for name in (*durations, "udp_idle_s", "tombstone_s", "bind_timeout_s", "take_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}", remedy="give a duration above 0")
        for told in (self.udp_address, self.inbound_address):
            if len({each.version for each in told}) < len(told):
                raise ConfigurationError(
                    "the proxy has several addresses of one IP version to tell", remedy="give one of each at most"
                )
        for user, spans in self.publish.items():
            for first, last in spans:
                if not 1 <= first <= last <= _HIGHEST_PORT:
                    raise ConfigurationError(
                        f"{first}-{last} are no ports at which {user} could publish",
                        remedy=f"give ports from 1 to {_HIGHEST_PORT}, the lower one first",
                    )
        if self.stop_grace_s < 0:
            raise ConfigurationError(f"stop_grace_s is {self.stop_grace_s}", remedy="give 0 or more")
