"""The BPF maps that a process holds: what they are, what memory they take, how many entries they have (bpf(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_GET_NEXT_KEY, _GET_FD_BY_ID, _GET_INFO_BY_FD = 4, 14, 15
_HASHES = {1, 5, 9, 10, 11}  # HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE: entries come and go
_ATTRIBUTES = 128  # bytes of union bpf_attr, as far as it is used
_INFO = 80  # bytes of struct bpf_map_info, up to its name and a little beyond

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class BpfMap:
    """One map. `size` is in bytes, as the kernel accounts for it; `entries` is None where they never come or go."""

    name: str
    kind: int
    size: int
    most_entries: int
    entries: int | None


def _bpf(command: int, attributes: bytes | bytearray) -> int:
    buffer = (ctypes.c_char * _ATTRIBUTES).from_buffer_copy(bytes(attributes).ljust(_ATTRIBUTES, b"\0"))
    result: int = _libc.syscall(_SYS_BPF[os.uname().machine], command, buffer, _ATTRIBUTES)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def _name(fd: int) -> str:
    info = ctypes.create_string_buffer(_INFO)
    _bpf(_GET_INFO_BY_FD, _words(fd, _INFO) + ctypes.addressof(info).to_bytes(8, "little"))
    return info.raw[24:40].rstrip(b"\0").decode()


def _count(fd: int, key_size: int) -> int:
    """Entries, by a walk over the keys; another that is removed meanwhile begins the walk anew, hence the set."""
    seen: set[bytes] = set()
    following = ctypes.create_string_buffer(key_size)
    key, at = ctypes.create_string_buffer(key_size), 0
    while True:
        pointers = at.to_bytes(8, "little") + ctypes.addressof(following).to_bytes(8, "little")
        try:
            _bpf(_GET_NEXT_KEY, _words(fd, 0) + pointers)
        except FileNotFoundError:
            return len(seen)
        if following.raw in seen:
            return len(seen)
        seen.add(following.raw)
        key.raw, at = following.raw, ctypes.addressof(key)


def maps_of(pids: Iterable[int]) -> list[BpfMap]:
    """The maps behind the descriptors of these processes, each once, by name. Needs CAP_SYS_ADMIN where there is one.

    Raises OSError.
    """
    found: dict[int, BpfMap] = {}
    for pid in pids:
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            try:
                fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            except FileNotFoundError:
                continue
            if "map_id" not in fields or int(fields["map_id"]) in found:
                continue
            number, kind = int(fields["map_id"]), int(fields["map_type"])
            fd = _bpf(_GET_FD_BY_ID, _words(number))
            try:
                entries = _count(fd, int(fields["key_size"])) if kind in _HASHES else None
                size, most = int(fields["memlock"]), int(fields["max_entries"])
                found[number] = BpfMap(_name(fd), kind, size, most, entries)
            finally:
                os.close(fd)
    return sorted(found.values(), key=lambda item: item.name)
