"""Lets go of every privilege that a running proxy does not need (capabilities(7)).

A service manager gives a proxy what it needs and nothing else. Who starts it as root gives it all there is; the proxy
takes what only root can do, its ports and its directories, and keeps the rest no longer.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from msocks.errors import MsocksError

# linux/capability.h
_DAC_OVERRIDE = 1
_NET_ADMIN, _NET_RAW, _BPF = 12, 13, 39
# CAP_PERFMON is for the verifier, and the programs are loaded.
_SPLICE = (_NET_ADMIN, _NET_RAW, _BPF)
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_LAST = 63


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_privileges(state: Path, *, splices: bool) -> None:
    """Keep what the splice needs, if it `splices`; once the ports are taken and the tables loaded.

    Programs that the proxy starts (nft) get no more than it has. Root, who may read every user's files, keeps that
    where the state directory is another user's.

    Raises:
        MsocksError: The kernel refuses.
    """
    kept = set(_SPLICE) if splices else set()
    if state.stat().st_uid != os.geteuid():
        kept.add(_DAC_OVERRIDE)
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    _checked(libc.capget(ctypes.byref(header), data))
    # While CAP_SETPCAP is there; without it there is nothing to bound. A number that the kernel does not know ends it.
    for number in range(_LAST + 1):
        if number not in kept and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    mask = sum(1 << number for number in kept)
    for word, part in enumerate(data):
        allowed = mask >> 32 * word & 0xFFFFFFFF
        part.permitted &= allowed
        part.effective &= allowed
        part.inheritable &= allowed
    _checked(libc.capset(ctypes.byref(header), data))


def _checked(result: int) -> None:
    if result < 0:
        raise MsocksError(
            f"the proxy cannot let go of its privileges: {os.strerror(ctypes.get_errno())}",
            remedy="start it as an ordinary user, with the capabilities of systemd/msocks-proxy.service",
        )
