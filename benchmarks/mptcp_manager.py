"""Plays the network manager of a mobile host that speaks MPTCP: each link that is up is an endpoint, and no other is.

    python -m benchmarks.mptcp_manager NAME=ADDRESS[:backup] ...

It follows the kernel's link events, prints `ready`, and runs until it is killed. This is what NetworkManager does by
itself with `connection.mptcp-flags`; without it the kernel keeps subflows on links that are gone, and never opens one
on a link that has come.
"""

from __future__ import annotations

import subprocess
import sys

from pyroute2 import IPRoute


class Endpoints:
    """The MPTCP endpoints of this network namespace."""

    def __init__(self, wanted: dict[str, tuple[str, list[str]]]) -> None:
        self._wanted = wanted
        self._ids = {name: str(number) for number, name in enumerate(wanted, 1)}
        self._present: set[str] = set()

    def follow(self, name: str, up: bool) -> None:
        """A link is up, or is not."""
        if name not in self._wanted or up == (name in self._present):
            return
        number = self._ids[name]
        if up:
            address, flags = self._wanted[name]
            _ip("endpoint", "add", address, "dev", name, "id", number, "subflow", *flags)
            self._present.add(name)
        else:
            _ip("endpoint", "delete", "id", number)
            self._present.discard(name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", "mptcp", *arguments], check=True)


def main() -> None:
    """See the module."""
    wanted: dict[str, tuple[str, list[str]]] = {}
    for argument in sys.argv[1:]:
        name, _, rest = argument.partition("=")
        address, *flags = rest.split(":")
        wanted[name] = (address, flags)
    _ip("limits", "set", "subflows", "2", "add_addr_accepted", "2")
    endpoints = Endpoints(wanted)
    with IPRoute() as netlink:
        netlink.bind()
        for message in netlink.get_links():
            endpoints.follow(message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_OPERSTATE") == "UP")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            for message in netlink.get():
                if message["event"] == "RTM_NEWLINK":
                    endpoints.follow(message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_OPERSTATE") == "UP")


if __name__ == "__main__":
    main()
