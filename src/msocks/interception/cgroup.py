"""The control group of one run: made below the caller's own, swept away by whoever comes later where it was left.

Or that of all processes of this host, or of this container.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from pathlib import Path
from typing import Protocol

from msocks.interception.refusal import CannotIntercept

_PREFIX = "msocks-run-"
_ATTEMPTS = 16


class Group(Protocol):
    """What a keeper needs of a control group."""

    @property
    def fd(self) -> int:
        """Of its directory."""

    @property
    def path(self) -> Path:
        """Its directory."""

    @property
    def is_populated(self) -> bool:
        """Whether a process lives in it."""

    def enter(self) -> None:
        """Put this process into it. Raises OSError."""

    def watch(self, poll: select.poll) -> int:
        """Have `poll` report when processes come and go; returns the descriptor that it will name."""

    def close(self) -> None:
        """Let go of it."""


class RunGroup:
    """A control group (version 2). A lock on its directory, which goes with the process, tells that it has an owner."""

    def __init__(self) -> None:
        """
        Raises:
            CannotIntercept: There is no unified hierarchy, or it cannot be written to.
        """
        parent = _own_group()
        _sweep(parent)
        for number in range(_ATTEMPTS):
            path = parent / f"{_PREFIX}{os.getpid()}-{number}"
            try:
                path.mkdir()
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileExistsError, FileNotFoundError):
                continue  # taken; or another run has swept it away before it was locked
            except OSError as error:
                raise CannotIntercept(
                    f"no control group can be made below {parent}: {error.strerror}",
                    remedy="run as root (sudo), or have the control group delegated to you",
                ) from None
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path, self.fd = path, descriptor
            self._events = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
            return
        raise CannotIntercept(f"no control group can be made below {parent}: its names are taken")

    def enter(self) -> None:
        """Put this process into it; sockets that it and its children make from now on belong to it. Raises OSError."""
        (self.path / "cgroup.procs").write_text("0")

    def watch(self, poll: select.poll) -> int:
        """Have `poll` report when processes come and go; returns the descriptor that it will name."""
        poll.register(self._events, select.POLLPRI)
        return self._events

    @property
    def is_populated(self) -> bool:
        """Whether a process lives in it, or in a group below."""
        return b"populated 1" in os.pread(self._events, 4096, 0)

    def close(self) -> None:
        """Remove it where it is empty, and let go of it."""
        with contextlib.suppress(OSError):
            _remove(self.path)
        os.close(self._events)
        os.close(self.fd)


class WholeHost:
    """The control group of all processes: the root of the hierarchy as this process sees it."""

    is_populated = True

    def __init__(self) -> None:
        """
        Raises:
            CannotIntercept: There is no unified hierarchy.
        """
        self.path = _mount()
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def enter(self) -> None:
        """Every process is in it."""

    def watch(self, poll: select.poll) -> int:
        """There is nothing to report."""
        del poll
        return self.fd

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


def _mount() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[:1] == ["cgroup2"]:
            return Path(before.split()[4].encode().decode("unicode_escape"))
    raise CannotIntercept("this host has no unified control groups (cgroup2)", remedy="mount them: see cgroups(7)")


def _own_group() -> Path:
    mount = _mount()
    unified = (line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    own = mount / next(unified, "0::/").removeprefix("0::").lstrip("/")
    return own if own.is_dir() and ".." not in own.parts else mount


def _sweep(parent: Path) -> None:
    """Remove what runs have left whose keeper was killed."""
    for left in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    """A group and the groups that programs have made below it; raises OSError where a process lives there."""
    for below in path.iterdir():
        if below.is_dir():
            _remove(below)
    path.rmdir()
