"""Anonymous Linux namespaces: made with unshare(2), entered with setns(2), held by file descriptors.

Nothing here has a name in the file system, so nothing outlives the process that holds the descriptors. `os.unshare`
and `os.setns` came with Python 3.12, hence ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msocks_lab.errors import SetupError

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

BPFFS = Path("/sys/fs/bpf")

_MS_REC = 0x4000
_MS_BIND = 0x1000
_MS_PRIVATE = 0x40000
_MS_NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8
_PR_SET_TIMERSLACK = 29

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result == 0:
        return
    number = ctypes.get_errno()
    if number == 1:  # EPERM
        raise SetupError(f"{what}: {os.strerror(number)}", "Run as root; a container needs CAP_SYS_ADMIN as well")
    raise SetupError(f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces (for CLONE_NEWPID: its future children). Raises SetupError."""
    _check(_libc.unshare(flags), "Cannot make a namespace")


def setns(fd: int, flag: int) -> None:
    """Enter the namespace behind `fd` (for CLONE_NEWPID: with the thread's future children). Raises SetupError."""
    _check(_libc.setns(fd, flag), "Cannot enter a namespace")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = source.encode(), target.encode(), kind.encode()
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()), f"Cannot mount {source} on {target}")


def keep_mounts_private() -> None:
    """Let no mount go out of this mount namespace, nor come into it. Raises SetupError."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)


def mount_bpffs() -> None:
    """Mount a new BPF file system: what is pinned in it is seen, and lives, in this mount namespace alone.

    Where the kernel has no BPF there is nothing to mount it on, and nothing is done. Raises SetupError.
    """
    if BPFFS.is_dir():
        _mount("bpf", str(BPFFS), "bpf", _MS_NOSUID_NODEV_NOEXEC, "mode=0700")


def exact_timers() -> None:
    """Let the calling thread's sleeps end when they should, not up to 50 microseconds later."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


_pid_namespace_lock = threading.Lock()


@contextlib.contextmanager
def children_in_pid_namespace(fd: int | None) -> Iterator[None]:
    """Processes that this thread starts inside the block live in the PID namespace `fd`, or in a new one for None.

    They remain ordinary children of this process. In a new namespace the first of them is process 1: when it ends,
    the kernel kills all the others. Start no thread inside the block: the kernel refuses (EINVAL).
    """
    with _pid_namespace_lock:
        own = os.open("/proc/thread-self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if fd is None:
                unshare(CLONE_NEWPID)
            else:
                setns(fd, CLONE_NEWPID)
            try:
                yield
            finally:
                setns(own, CLONE_NEWPID)
        finally:
            os.close(own)


@dataclass(frozen=True, slots=True)
class HostNamespaces:
    """A network and a mount namespace that belong together, held open by descriptors of this process."""

    net: int
    mnt: int

    @classmethod
    def create(cls, overlays: dict[Path, Path]) -> HostNamespaces:
        """Make both; `overlays` maps files to what the host sees in their place.

        In it /proc shows the caller's PID namespace, /sys its own network, and /sys/fs/bpf is its own, empty at first.
        Only for a process with one thread. Raises SetupError.
        """
        with _returning():
            unshare(CLONE_NEWNET | CLONE_NEWNS)
            keep_mounts_private()
            for target, source in overlays.items():
                _mount(str(source), str(target), "", _MS_BIND)
            _mount("proc", "/proc", "proc", _MS_NOSUID_NODEV_NOEXEC)
            _remount_sys()
            mount_bpffs()
            flags = os.O_RDONLY | os.O_CLOEXEC
            return cls(os.open("/proc/self/ns/net", flags), os.open("/proc/self/ns/mnt", flags))

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Be in the network namespace: sockets made here stay in it, /proc/net and /proc/sys/net show it."""
        own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(self.net, CLONE_NEWNET)
            try:
                yield
            finally:
                setns(own, CLONE_NEWNET)
        finally:
            os.close(own)


@contextlib.contextmanager
def _returning() -> Iterator[None]:
    flags = os.O_RDONLY | os.O_CLOEXEC
    directory = Path.cwd()
    net, mnt = os.open("/proc/self/ns/net", flags), os.open("/proc/self/ns/mnt", flags)
    try:
        yield
    finally:
        setns(mnt, CLONE_NEWNS)
        setns(net, CLONE_NEWNET)
        os.chdir(directory)
        os.close(mnt)
        os.close(net)


def _remount_sys() -> None:
    """Let /sys/class/net show the new network, and keep the control groups below it."""
    path = "/sys/fs/cgroup"
    kept = os.open(path, os.O_PATH | os.O_CLOEXEC) if os.path.ismount(path) else None
    _mount("sysfs", "/sys", "sysfs", _MS_NOSUID_NODEV_NOEXEC)
    if kept is not None:
        _mount(f"/proc/self/fd/{kept}", path, "", _MS_BIND | _MS_REC)
        os.close(kept)
