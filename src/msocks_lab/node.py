"""One host of a lab: its namespaces, and what netlink and /proc do in them.

Only for the supervisor, a process with one thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError

from msocks_lab.errors import SetupError
from msocks_lab.namespaces import HostNamespaces

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_TUN_QUEUE = 20_000  # packets: the emulator's own queue is the one that overflows
_FIRST_NUMBER = 1000  # the kernel counts from 1
_SCOPE_LINK = 253
_WAIT_FOR_CARRIER = 2.0

_numbers = itertools.count(_FIRST_NUMBER)


class Node:
    """One host: its namespaces and a netlink socket in them."""

    def __init__(self, name: str, overlays: dict[Path, Path], sysctls: Mapping[str, str]) -> None:
        self.name = name
        self.namespaces = HostNamespaces.create(overlays)
        with self.namespaces.network():
            self.netlink = IPRoute()
        self.sysctl(sysctls)
        self.up("lo")

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Set values below /proc/sys/net."""
        with self.namespaces.network():
            for key, value in values.items():
                try:
                    Path("/proc/sys/net", key).write_text(value)
                except OSError as error:
                    raise SetupError(f"Cannot set net.{key.replace('/', '.')}: {error.strerror}") from error

    def index(self, interface: str) -> int:
        """The number of an interface."""
        with self.namespaces.network():
            return socket.if_nametoindex(interface)

    def up(self, interface: str) -> None:
        """Set an interface up."""
        self.netlink.link("set", index=self.index(interface), state="up")

    def down(self, interface: str) -> None:
        """Set an interface down."""
        self.netlink.link("set", index=self.index(interface), state="down")

    def set_mtu(self, interface: str, mtu: int) -> None:
        """Change an interface's MTU."""
        self.netlink.link("set", index=self.index(interface), mtu=mtu)

    def address(self, interface: str, address: str, length: int) -> None:
        """Have an address; not an error where it is there already."""
        # 0x02 is IFA_F_NODAD: usable at once.
        flags = {"flags": 0x02} if ":" in address else {}
        with _ignoring(errno.EEXIST):
            self.netlink.addr("add", index=self.index(interface), address=address, prefixlen=length, **flags)

    def flush_addresses(self, interface: str, families: Sequence[int] = (2, 10)) -> None:
        """Remove every address but the IPv6 link-local one, and with them their routes. A family is its number AF_…"""
        index = self.index(interface)
        for found in list(self.netlink.get_addr(index=index)):
            address = found.get_attr("IFA_ADDRESS")
            if found["family"] in families and not address.startswith("fe80:"):
                self.netlink.addr("del", index=index, address=address, prefixlen=found["prefixlen"])
        for family in families:
            for route in list(self.netlink.get_routes(family=family, oif=index, table=254)):
                gateway = route.get_attr("RTA_GATEWAY")
                if gateway:
                    with _ignoring(errno.ESRCH):
                        self.netlink.route(
                            "del",
                            family=family,
                            dst=_default(family),
                            oif=index,
                            gateway=gateway,
                            priority=route.get_attr("RTA_PRIORITY"),
                        )

    def route(self, destination: str, interface: str, gateway: str | None = None, metric: int = 0) -> None:
        """Have a route; not an error where it is there already. `destination` may be "default" only with a gateway."""
        self.netlink.route("replace", **self._route(destination, interface, gateway, metric))

    def unroute(self, destination: str, interface: str, gateway: str, metric: int) -> None:
        """Do not have a route; not an error where it is gone already."""
        with _ignoring(errno.ESRCH):
            self.netlink.route("del", **self._route(destination, interface, gateway, metric))

    def _route(self, destination: str, interface: str, gateway: str | None, metric: int) -> dict[str, Any]:
        probe = gateway or destination
        arguments: dict[str, Any] = {"family": 10 if ":" in probe else 2, "oif": self.index(interface)}
        arguments["dst"] = _default(arguments["family"]) if destination == "default" else destination
        if gateway:
            arguments["gateway"] = gateway
        else:
            arguments["scope"] = _SCOPE_LINK
        if metric:
            arguments["priority"] = metric
        return arguments

    def blackhole(self, destination: str) -> None:
        """Packets to a subnet that has no other route vanish: they neither loop nor raise ICMP errors."""
        family = 10 if ":" in destination else 2
        self.netlink.route("replace", family=family, dst=destination, type="blackhole", priority=1_000_000)

    def has_carrier(self, interface: str) -> bool:
        """Whether the interface is up and its other end is, too."""
        return bool(self.netlink.get_links(self.index(interface))[0].get_attr("IFLA_OPERSTATE") == "UP")

    def wait_for_carrier(self, interface: str) -> None:
        """Return when packets can flow. Raises SetupError after two seconds."""
        deadline = time.monotonic() + _WAIT_FOR_CARRIER
        while not self.has_carrier(interface):
            if time.monotonic() > deadline:
                raise SetupError(f"{interface} of {self.name} got no carrier")
            time.sleep(0.001)

    def tun(self, name: str, mtu: int) -> int:
        """Make a TUN interface and return its non-blocking descriptor. Raises SetupError."""
        with self.namespaces.network():  # the descriptor belongs to the network that it was opened in
            try:
                fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN_NO_PI))
            except OSError as error:
                raise SetupError(
                    f"Cannot make a TUN device: {error.strerror}",
                    "The emulator needs /dev/net/tun: load the kernel's `tun` module, or give it to the container",
                ) from error
        self.netlink.link("set", index=self.index(name), mtu=mtu, txqlen=_TUN_QUEUE, state="up")
        return fd

    def veth(self, name: str, peer: Node, peer_name: str, mtu: int, peer_mtu: int | None = None) -> None:
        """Join this node's new interface `name` to the new interface `peer_name` of another node; both come up."""
        self.netlink.link(
            "add",
            # Unlike any number at the other end: where the two ends of a veth have the same number, the kernel holds
            # news of a lost carrier back for up to a second (linkwatch_urgent_event).
            index=next(_numbers),
            ifname=name,
            kind="veth",
            mtu=mtu,
            peer={"ifname": peer_name, "net_ns_fd": peer.namespaces.net, "mtu": peer_mtu or mtu},
        )
        self.up(name)
        peer.up(peer_name)

    def counters(self, interface: str) -> dict[str, int]:
        """Bytes and packets that the interface has received and sent."""
        stats = self.netlink.get_links(self.index(interface))[0].get_attr("IFLA_STATS64")
        return {key: stats[key] for key in ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")}

    def flush_conntrack(self) -> None:
        """Forget all tracked connections."""
        with self.namespaces.network(), NFCTSocket() as conntrack:
            conntrack.flush()

    def proc_net(self, file: str) -> str:
        """A file below /proc/net of this host."""
        with self.namespaces.network():
            return Path("/proc/self/net", file).read_text()


def _default(family: int) -> str:
    return "::/0" if family == 10 else "0.0.0.0/0"


@contextlib.contextmanager
def _ignoring(*numbers: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in numbers:
            raise
