"""How often the BPF programs of a process run, and how long (BPF_ENABLE_STATS, bpf(2))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.bpf_call import bpf, described, info, words

_GET_FD_BY_ID, _ENABLE_STATS = 13, 32
_RUN_TIME = 0  # BPF_STATS_RUN_TIME
_NAME = slice(64, 80)  # of struct bpf_prog_info


@dataclass(frozen=True, slots=True)
class Runs:
    """Of one program, all of its instances together, since it was loaded and while somebody counted."""

    count: int
    ns: int


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """The kernel counts runs of programs of the whole machine meanwhile. Needs CAP_SYS_ADMIN. Raises OSError."""
    fd = bpf(_ENABLE_STATS, words(_RUN_TIME))
    try:
        yield
    finally:
        os.close(fd)


def programs_of(pids: Iterable[int]) -> dict[str, Runs]:
    """The programs behind the descriptors of these processes, by name. Raises OSError."""
    seen: set[int] = set()
    found: dict[str, Runs] = {}
    for fields in described(pids):
        number = int(fields.get("prog_id", 0))
        if not number or number in seen:
            continue
        seen.add(number)
        fd = bpf(_GET_FD_BY_ID, words(number))
        try:
            name = info(fd, _NAME.stop)[_NAME].rstrip(b"\0").decode()
        finally:
            os.close(fd)
        before = found.get(name, Runs(0, 0))
        found[name] = Runs(before.count + int(fields["run_cnt"]), before.ns + int(fields["run_time_ns"]))
    return found
