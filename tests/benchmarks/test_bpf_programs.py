"""What is counted of the BPF programs of a process."""

from __future__ import annotations

import ctypes
import os
import struct

from benchmarks.bpf_call import bpf

from benchmarks import bpf_programs

LOAD, TEST_RUN = 5, 10
SOCKET_FILTER = 1
RETURN_0 = b"\xb7\0\0\0\0\0\0\0" + b"\x95" + bytes(7)
RUNS = 100


def loaded(name: bytes) -> int:
    code, licence = ctypes.create_string_buffer(RETURN_0, len(RETURN_0)), ctypes.create_string_buffer(b"GPL")
    pointers = [ctypes.addressof(item) for item in (code, licence)]
    return bpf(LOAD, struct.pack("=IIQQIIQII16s", SOCKET_FILTER, 2, *pointers, 0, 0, 0, 0, 0, name))


def run(fd: int) -> None:
    data = ctypes.create_string_buffer(64)
    bpf(TEST_RUN, struct.pack("=IIIIQQII", fd, 0, 64, 0, ctypes.addressof(data), 0, RUNS, 0))


def test_runs_are_counted_while_somebody_counts():
    fd = loaded(b"try_program")
    try:
        run(fd)
        assert bpf_programs.programs_of([os.getpid()])["try_program"].count == 0
        with bpf_programs.counting():
            run(fd)
        found = bpf_programs.programs_of([os.getpid()])["try_program"]
        assert found.count == RUNS
        assert 0 < found.ns < 1_000_000 * RUNS
    finally:
        os.close(fd)
