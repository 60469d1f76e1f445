"""A network of the test's own: a fresh network namespace, which goes when the test leaves it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from msocks_lab.namespaces import CLONE_NEWNET, setns, unshare


class OwnNetwork:
    """The namespace that the test's thread is in."""

    def ip(self, commands: str) -> None:
        """Run iproute2: several commands, one a line."""
        subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True, timeout=10)

    def add_veth(self, name: str) -> None:
        """An interface without addresses, set up, whose other end (peer-NAME) is up as well: it has carrier."""
        self.ip(
            f"link add {name} type veth peer name peer-{name}\n"
            f"link set peer-{name} up\n"
            f"link set {name} addrgenmode none up"
        )


@contextlib.contextmanager
def own_network() -> Iterator[OwnNetwork]:
    """Be in a new network namespace, with lo up."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            network = OwnNetwork()
            network.ip("link set lo up")
            yield network
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)
