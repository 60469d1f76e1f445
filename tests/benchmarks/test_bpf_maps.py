"""What is read about the BPF maps of a process."""

from __future__ import annotations

import ctypes
import os

import pytest
from benchmarks.bpf_call import bpf

from benchmarks import bpf_maps

CREATE, UPDATE = 0, 2
HASH, ARRAY = 1, 2
NO_PREALLOC = 1


def created(kind: int, name: bytes, most: int, flags: int = 0) -> int:
    words = b"".join(value.to_bytes(4, "little") for value in (kind, 4, 64, most, flags, 0, 0))
    return bpf(CREATE, words + name.ljust(16, b"\0"))


def put(fd: int, key: int) -> None:
    where, what = ctypes.create_string_buffer(key.to_bytes(4, "little"), 4), ctypes.create_string_buffer(64)
    pointers = [ctypes.addressof(item).to_bytes(8, "little") for item in (where, what)]
    bpf(UPDATE, fd.to_bytes(8, "little") + b"".join(pointers))


def test_maps_with_their_names_sizes_and_entries():
    flows, sessions = created(HASH, b"try_flows", 1000, NO_PREALLOC), created(ARRAY, b"try_sessions", 500)
    try:
        for key in range(7):
            put(flows, key)
        found = {item.name: item for item in bpf_maps.maps_of([os.getpid()])}
        assert found["try_flows"].entries == 7
        assert found["try_flows"].most_entries == 1000
        assert found["try_sessions"].entries is None
        assert found["try_sessions"].size >= 500 * 64
    finally:
        os.close(flows)
        os.close(sessions)


def test_a_process_without_maps_has_none():
    assert bpf_maps.maps_of([os.getpid()]) == []


def test_what_the_kernel_refuses_is_an_error():
    with pytest.raises(OSError, match="Invalid argument"):
        created(HASH, b"no entries", 0)
