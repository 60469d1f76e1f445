"""Becomes the program: this process, which has the terminal, the signals and the parent that the program shall have.

The keeper is started beside it, as nobody's child: the program shall have no child that it does not know.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msocks.errors import MsocksError
from msocks.interception.identity import Identity
from msocks.interception.keeper import Keeper
from msocks.interception.refusal import CannotIntercept

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit statuses of shells and env(1), for a program that there is not, or that cannot be run."""


class CannotStart(MsocksError):
    """The program cannot be started.

    Attributes:
        status: The exit status that shells give it.
    """

    def __init__(self, program: str, error: OSError) -> None:
        super().__init__(f"cannot start {program}: {error.strerror}", remedy="give a program's name, or its path")
        self.status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def open_descriptors() -> frozenset[int]:
    """The descriptors that this process has, standard ones apart: at first those that the program shall inherit."""
    listed = [int(each.name) for each in Path("/proc/self/fd").iterdir()]
    return frozenset(number for number in listed if number > sys.stderr.fileno() and _is_open(number))


def _is_open(descriptor: int) -> bool:
    """That by which the directory was listed is open no more."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def start_keeper(keeper: Keeper, inherited: frozenset[int]) -> None:
    """Put this process into the run's control group, and let a process of its own keep the run.

    Args:
        keeper: Of the run; in this process it is closed by `become`, or by the process's end.
        inherited: Descriptors that are none of the keeper's business (see `open_descriptors`).

    Raises:
        CannotIntercept: The keeper does not start, or the kernel refuses the group.
        OSError: The kernel gives no process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ours, its = socket.socketpair()
    between = os.fork()
    if between == 0:
        try:
            if os.fork() == 0:
                ours.close()
                _keep(keeper, its, inherited)
        finally:
            os._exit(0)
    its.close()
    os.waitpid(between, 0)
    with ours:
        if not ours.recv(1):  # without a keeper the program would connect directly, and nobody would know
            raise CannotIntercept("the process that keeps the hooks did not start", remedy="the memory may be full")
        try:
            keeper.group.enter()
        except OSError as error:
            raise CannotIntercept(
                f"the control group {keeper.group.path} cannot be entered: {error.strerror}",
                remedy="run as root (sudo)",
            ) from None


def _keep(keeper: Keeper, parent: socket.socket, inherited: frozenset[int]) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for descriptor in inherited:  # a pipe of the user's would not end while the keeper has it
        with contextlib.suppress(OSError):
            os.close(descriptor)
    os.chdir("/")
    with parent:
        parent.send(b"+")
        parent.recv(1)  # until it is in the group, or gone
    keeper.run()


def become(command: Sequence[str], environment: Mapping[str, str], identity: Identity | None) -> None:
    """Become the program; returns never.

    Args:
        command: Its name and arguments; the name is looked up in PATH.
        environment: Its environment, whole.
        identity: Who it shall run as; None for no change.

    Raises:
        CannotStart: There is no such program, or it cannot be executed.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the program would
        signal.signal(number, signal.SIG_DFL)
    try:
        if identity is not None:
            identity.assume()
        os.execvpe(command[0], list(command), dict(environment))  # noqa: S606 - what was asked for
    except OSError as error:
        raise CannotStart(command[0], error) from None
