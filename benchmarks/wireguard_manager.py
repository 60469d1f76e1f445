"""Plays the hook of a mobile host's network manager that tells wireguard-go of each change of a link.

    python -m benchmarks.wireguard_manager INTERFACE PEER ENDPOINT KEEPALIVE

It follows the kernel's link events, prints `ready`, and runs until it is killed. Setting the endpoint anew makes
wireguard-go forget the source address that it had; a keepalive that is switched on is sent at once, and tells the other
end of the new one. Without it wireguard-go waits for 15 s without an answer before it does so.
"""

from __future__ import annotations

import subprocess
import sys

from pyroute2 import IPRoute


def _roam(interface: str, peer: str, endpoint: str, keepalive: str) -> None:
    for seconds in ("0", keepalive):
        argv = ["wg", "set", interface, "peer", peer, "endpoint", endpoint, "persistent-keepalive", seconds]
        subprocess.run(argv, check=True)


def main() -> None:
    """See the module."""
    interface, peer, endpoint, keepalive = sys.argv[1:]
    states: dict[str, bool] = {}
    with IPRoute() as netlink:
        netlink.bind()
        for message in netlink.get_links():
            states[message.get_attr("IFLA_IFNAME")] = message.get_attr("IFLA_OPERSTATE") == "UP"
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            for message in netlink.get():
                name, up = message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_OPERSTATE") == "UP"
                if message["event"] == "RTM_NEWLINK" and name != interface and states.get(name) != up:
                    states[name] = up
                    _roam(interface, peer, endpoint, keepalive)


if __name__ == "__main__":
    main()
