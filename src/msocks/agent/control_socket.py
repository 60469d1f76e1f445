"""The Unix socket of the control API: made private, taken over from an agent that is gone, never from one that runs."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from msocks.agent.control_path import MAX_PATH_BYTES
from msocks.errors import ConfigurationError

_BACKLOG = 64


def bind_control_socket(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A listening Unix socket at `path`, mode 0600; its directory is created where it is missing, mode 0700.

    Raises:
        ConfigurationError: The path is too long, an agent listens there, something else lies there, or the directory
            cannot be used.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigurationError(
            f"the control socket's path has {len(os.fsencode(path))} bytes, more than the kernel's {MAX_PATH_BYTES}",
            remedy="give a shorter one with --control",
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(path, kind)
        return _listen(path, kind)
    except OSError as error:
        raise ConfigurationError(
            f"the control socket {path} cannot be made: {error.strerror}",
            remedy="give a place where you may write with --control",
        ) from None


def _clear(path: Path, kind: socket.SocketKind) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(
            f"{path} is there already and is no socket", remedy="give another path with --control, or move it away"
        )
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except PermissionError:
            pass  # somebody else's: alive or not, it is not ours to take
    raise ConfigurationError(
        f"an agent runs already at the control socket {path}",
        remedy="use that one (`msocks status`), stop it, or give this one another socket with --control",
    )


def _listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        # bind() gives the file the descriptor's mode, less the umask: it is never open to others, not for a moment.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.setblocking(False)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"another agent has just taken the control socket {path}", remedy="use that one, or give another path"
            ) from None
        raise
    return listener
