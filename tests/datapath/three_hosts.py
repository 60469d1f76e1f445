"""Three hosts joined by veth links, in network namespaces of the test's own: a mobile node, a proxy and a server.

    mobile == two links == proxy -- one link -- server

Every link has an IPv4 and an IPv6 subnet. The thread of the test is on the proxy; it goes to the others for the moment
in which it makes a socket there, which then stays there.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from tests.own_network import own_bpffs

from msocks.values.endpoint import Address
from msocks_lab.namespaces import CLONE_NEWNET, setns, unshare
from msocks_lab.topology import choosable

MOBILE_LINKS = (1, 2)
SERVER_LINK = 3
_CONGESTION_CONTROL = "cubic"
_SYSCTLS = {
    "ipv4/tcp_congestion_control": _CONGESTION_CONTROL,
    "ipv4/tcp_no_metrics_save": "1",
    # An address can be used at once.
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
}


@dataclass(frozen=True, slots=True)
class VethHost:
    """One of the three."""

    name: str
    namespace: int  # a descriptor

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The thread is on this host."""
        own = _current()
        try:
            setns(self.namespace, CLONE_NEWNET)
            try:
                yield
            finally:
                setns(own, CLONE_NEWNET)
        finally:
            os.close(own)

    def socket(self, family: socket.AddressFamily) -> socket.socket:
        """A TCP socket of this host."""
        with self.entered():
            return socket.socket(family)

    def ip(self, commands: str) -> None:
        """Run iproute2 there: several commands, one a line."""
        with self.entered():
            subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True, timeout=10)


@dataclass(frozen=True, slots=True)
class ThreeHosts:
    """See the module."""

    mobile: VethHost
    proxy: VethHost
    server: VethHost


def near_address(link: int, family: socket.AddressFamily) -> Address:
    """The address that the proxy has on a link."""
    return _address(link, family, 1)


def far_address(link: int, family: socket.AddressFamily) -> Address:
    """The address that the mobile node or the server has on a link."""
    return _address(link, family, 2)


@contextmanager
def three_hosts() -> Iterator[ThreeHosts]:
    """Be on the proxy. Everything goes with the block: hosts, links, and what was pinned below /sys/fs/bpf."""
    with ExitStack() as stack:
        with choosable(_CONGESTION_CONTROL):
            hosts = ThreeHosts(*(_host(name, stack) for name in ("mobile", "proxy", "server")))
        for link in MOBILE_LINKS:
            _join(hosts.proxy, hosts.mobile, link)
        _join(hosts.proxy, hosts.server, SERVER_LINK)
        stack.enter_context(own_bpffs())
        stack.enter_context(hosts.proxy.entered())
        yield hosts


def _host(name: str, stack: ExitStack) -> VethHost:
    own = _current()
    try:
        unshare(CLONE_NEWNET)
        try:
            host = VethHost(name, _current())
            stack.callback(os.close, host.namespace)
            for key, value in _SYSCTLS.items():
                Path("/proc/sys/net", key).write_text(value)
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)
    host.ip("link set lo up")
    return host


def _join(near: VethHost, far: VethHost, link: int) -> None:
    # Numbers that differ between the two ends: where they are the same, the kernel takes its time over news of carrier.
    near.ip(
        f"link add link{link} index {100 + link} type veth peer name link{link} index {200 + link} "
        f"netns /proc/{os.getpid()}/fd/{far.namespace}"
    )
    for host, address in ((near, near_address), (far, far_address)):
        v4, v6 = (address(link, family) for family in (socket.AF_INET, socket.AF_INET6))
        host.ip(f"link set link{link} up\naddr add {v4}/24 dev link{link}\naddr add {v6}/64 dev link{link} nodad")


def _address(link: int, family: socket.AddressFamily, number: int) -> Address:
    return ip_address(f"10.81.{link}.{number}" if family == socket.AF_INET else f"fd81:{link}::{number}")


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
