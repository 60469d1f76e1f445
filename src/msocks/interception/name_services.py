"""Services of this host that resolve names for programs over a Unix socket, out of reach of the hooks.

The C library asks them before any name server where nsswitch.conf(5) says so. A run whose names the proxy shall resolve
gets a mount namespace of its own in which their sockets are not: then the library asks name servers.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from msocks.interception.refusal import CannotIntercept

SOCKETS = (
    Path("/run/systemd/resolve/io.systemd.Resolve"),  # nss-resolve
    Path("/run/nscd/socket"),
    Path("/run/avahi-daemon/socket"),  # nss-mdns
)

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000


def hide_name_services() -> None:
    """From now on this process and its children do not find them; nothing changes for others, nor where there are none.

    Raises:
        CannotIntercept: The privilege is missing.
    """
    present = [path for path in SOCKETS if path.exists()]
    if not present:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_CLONE_NEWNS))
    # Mounts of the host still come in, and none goes out.
    _check(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))
    for path in present:
        _check(libc.mount(b"/dev/null", os.fsencode(path), None, ctypes.c_ulong(_MS_BIND), None))


def _check(result: int) -> None:
    if result != 0:
        raise CannotIntercept(
            f"the host's own name services cannot be hidden from the program: {os.strerror(ctypes.get_errno())}",
            remedy="run as root (sudo), or stop them; without --dns proxy nothing has to be hidden",
        )
