"""This host's own addresses and networks: what a program connects to there, the proxy cannot reach in its place."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

_HOST_LOCAL = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_ROOM = 64 * 1024
_DUMP_ATTEMPTS = 5


def local_addresses() -> set[IPv4Network | IPv6Network]:
    """The addresses of all interfaces of this network namespace, each as a network of one."""
    found: set[IPv4Network | IPv6Network] = set()
    with contextlib.suppress(OSError):
        table = Path("/proc/self/net/fib_trie").read_text()
        found |= {IPv4Network(IPv4Address(text)) for text in _HOST_LOCAL.findall(table)}
    with contextlib.suppress(OSError):  # there is no such file on a host without IPv6
        lines = Path("/proc/self/net/if_inet6").read_text().splitlines()
        found |= {IPv6Network(IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines}
    return found


def local_networks() -> set[IPv4Network | IPv6Network]:
    """The networks that this host is on, by the prefixes of its addresses; and the addresses, each as a network of one.

    Raises:
        OSError: The kernel gives no netlink.
    """
    # A tenth of a second of imports, which `msocks run` does without.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

    with IPRoute() as netlink:
        for _ in range(_DUMP_ATTEMPTS):
            with contextlib.suppress(NetlinkDumpInterrupted):  # the list changed while it was read
                messages = list(netlink.get_addr())
                break
        else:
            raise OSError(errno.EAGAIN, "the addresses change faster than they can be read")
    found = local_addresses()
    for message in messages:
        address = message.get_attr("IFA_ADDRESS")  # of a point-to-point interface: the other end's
        network = ip_network(f"{address}/{message['prefixlen']}", strict=False)
        if network.prefixlen:
            found.add(network)
    return found


class AddressNews:
    """Tells that addresses have come or gone, not which: ask `local_addresses` again."""

    def __init__(self) -> None:
        """Raises OSError where the kernel gives no netlink."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))

    def fileno(self) -> int:
        """To be watched for reading."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Read all of it."""
        try:
            while self._socket.recv(_ROOM):
                pass
        except BlockingIOError:
            pass
        except OSError:
            self.drain()  # ENOBUFS: so many that some were lost, once

    def close(self) -> None:
        """Close it."""
        self._socket.close()
