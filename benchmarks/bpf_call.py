"""bpf(2) by number, for what the kernel's accounting tells of maps and programs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_ATTRIBUTES = 128  # bytes of union bpf_attr, as far as it is used
_GET_INFO_BY_FD = 15

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes | bytearray) -> int:
    """The call; what it returns. Raises OSError."""
    buffer = (ctypes.c_char * _ATTRIBUTES).from_buffer_copy(bytes(attributes).ljust(_ATTRIBUTES, b"\0"))
    result: int = _libc.syscall(_SYS_BPF[os.uname().machine], command, buffer, _ATTRIBUTES)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def words(*values: int) -> bytes:
    """Numbers of 32 bits, one after the other."""
    return b"".join(value.to_bytes(4, "little") for value in values)


def info(fd: int, size: int) -> bytes:
    """The first bytes of struct bpf_map_info or bpf_prog_info. Raises OSError."""
    buffer = ctypes.create_string_buffer(size)
    bpf(_GET_INFO_BY_FD, words(fd, size) + ctypes.addressof(buffer).to_bytes(8, "little"))
    return buffer.raw


def described(pids: Iterable[int]) -> Iterator[dict[str, str]]:
    """What proc(5) says of each open descriptor of these processes (fdinfo)."""
    for pid in pids:
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            try:
                lines = path.read_text().splitlines()
            except FileNotFoundError:
                continue  # closed meanwhile
            yield {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
