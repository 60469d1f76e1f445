"""A network and pins of the test's own: fresh namespaces, which go when the test leaves them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from msocks_lab.namespaces import (
    BPFFS,
    CLONE_FS,
    CLONE_NEWNET,
    CLONE_NEWNS,
    keep_mounts_private,
    mount_bpffs,
    setns,
    unshare,
)


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


@contextlib.contextmanager
def own_bpffs() -> Iterator[Path]:
    """Be in a new mount namespace that differs in /sys/fs/bpf alone, an empty BPF file system; its path.

    What is pinned there goes with the block, unless a descriptor keeps it. Programs and threads that are started in the
    block see it as well. Other threads of the process stay where they are, and no longer share the working directory
    with this one. What netlink or bpf(2) has attached stays attached: combine with `own_network`.
    """
    directory = Path.cwd()
    home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNS)
        try:
            keep_mounts_private()
            mount_bpffs()
            yield BPFFS
        finally:
            # A thread that was started meanwhile shares root and working directory, and the kernel refuses (EINVAL).
            unshare(CLONE_FS)
            setns(home, CLONE_NEWNS)
            os.chdir(directory)
    finally:
        os.close(home)
