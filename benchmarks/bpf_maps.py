"""The BPF maps that a process holds: what they are, what memory they take, how many entries they have (bpf(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.bpf_call import bpf, described, info, words

_GET_NEXT_KEY, _GET_FD_BY_ID = 4, 14
_HASHES = {1, 5, 9, 10, 11}  # HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE: entries come and go
_NAME = slice(24, 40)  # of struct bpf_map_info


@dataclass(frozen=True, slots=True)
class BpfMap:
    """One map. `size` is in bytes, as the kernel accounts for it; `entries` is None where they never come or go."""

    name: str
    kind: int
    size: int
    most_entries: int
    entries: int | None


def _count(fd: int, key_size: int) -> int:
    """Entries, by a walk over the keys; another that is removed meanwhile begins the walk anew, hence the set."""
    seen: set[bytes] = set()
    following = ctypes.create_string_buffer(key_size)
    key, at = ctypes.create_string_buffer(key_size), 0
    while True:
        pointers = at.to_bytes(8, "little") + ctypes.addressof(following).to_bytes(8, "little")
        try:
            bpf(_GET_NEXT_KEY, words(fd, 0) + pointers)
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
    for fields in described(pids):
        if "map_id" not in fields or int(fields["map_id"]) in found:
            continue
        number, kind = int(fields["map_id"]), int(fields["map_type"])
        fd = bpf(_GET_FD_BY_ID, words(number))
        try:
            entries = _count(fd, int(fields["key_size"])) if kind in _HASHES else None
            size, most = int(fields["memlock"]), int(fields["max_entries"])
            name = info(fd, _NAME.stop)[_NAME].rstrip(b"\0").decode()
            found[number] = BpfMap(name, kind, size, most, entries)
        finally:
            os.close(fd)
    return sorted(found.values(), key=lambda item: item.name)
