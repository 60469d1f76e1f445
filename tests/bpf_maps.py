"""BPF maps by plain bpf(2), for tests of where pins are seen and when what they keep goes.

As a program: pin one, print its id.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

_NUMBER = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _OBJ_PIN, _PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID = 0, 6, 13, 14
_ARRAY = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    result: int = _libc.syscall(_NUMBER[platform.machine()], command, attributes, len(attributes))
    if result < 0:
        raise OSError(number := ctypes.get_errno(), os.strerror(number))
    return result


def pin_new_map(path: Path) -> int:
    """Make an array of one element, which only the pin at `path` keeps; its id. Raises OSError."""
    fd = _bpf(_MAP_CREATE, struct.pack("=IIII", _ARRAY, 4, 4, 1))
    try:
        text = ctypes.create_string_buffer(os.fsencode(path))
        _bpf(_OBJ_PIN, struct.pack("=QI", ctypes.addressof(text), fd))
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("map_id:"))
    finally:
        os.close(fd)


def map_exists(number: int) -> bool:
    """Whether anything on this machine, pinned or held, keeps the map with this id."""
    return _exists(_MAP_GET_FD_BY_ID, number)


def program_exists(number: int) -> bool:
    """Whether anything on this machine, pinned, held, attached or a timer, keeps the program with this id."""
    return _exists(_PROG_GET_FD_BY_ID, number)


def _exists(command: int, number: int) -> bool:
    try:
        os.close(_bpf(command, struct.pack("=III", number, 0, 0)))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


if __name__ == "__main__":
    print(pin_new_map(Path(sys.argv[1])))
