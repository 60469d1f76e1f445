"""What is known of one flow, and its un-ACKed bytes, in memory that the service manager holds for the next agent.

It is a memfd (memfd_create(2)): no file, gone with its last descriptor, for nobody's eyes but theirs who have one. It
has no keys; the next agent gets keys of its own by its user's secret. The first page has how far the upstream was
ACKed; two more take the record in turn, so that there is always a whole one; behind them is the ring. Pages that hold
nothing take up no memory: an idle flow has two.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping
from typing import Any

from msocks.session.byte_budget import ByteBudget
from msocks.transport.ring_retention import RingRetention

_MAGIC = b"MSOCKSF1"  # another layout, another number: the next program may be another version
_PAGE = 4096
_BASE_AT, _TURN_AT = 8, 16
_RING_AT = 64 * 1024  # a multiple of the largest page size there is
RING_BYTES = 8 * 1024 * 1024
"""The most upstream bytes of one flow that are not ACKed, twice what a leg's send buffer takes by default."""
_NOEXEC_SEAL = 0x8  # MFD_NOEXEC_SEAL, Linux 6.3


class FlowMemory:
    """See the module. Raises OSError where there is no memory, ValueError where a descriptor holds something else."""

    def __init__(self, descriptor: int | None = None) -> None:
        """A new one, or that of an earlier process, whose descriptor is closed in any case."""
        fresh = descriptor is None
        self._descriptor = _create() if descriptor is None else descriptor
        try:
            if os.fstat(self._descriptor).st_size != _RING_AT + RING_BYTES:
                raise ValueError("it has another size")
            self._memory = mmap.mmap(self._descriptor, _RING_AT + RING_BYTES)
            if fresh:
                self._memory[: len(_MAGIC)] = _MAGIC
            elif self._memory[: len(_MAGIC)] != _MAGIC:
                raise ValueError("it was written by another version of the program")
        except BaseException:
            os.close(self._descriptor)
            raise
        if not fresh:
            self.let_go()

    @property
    def descriptor(self) -> int:
        """To be stored; until `let_go`."""
        return self._descriptor

    def let_go(self) -> None:
        """The descriptor is not needed any more."""
        os.close(self._descriptor)
        self._descriptor = -1

    @property
    def base(self) -> int:
        """All upstream bytes before are known to have arrived."""
        (base,) = struct.unpack_from("<Q", self._memory, _BASE_AT)
        return int(base)

    def ring(self, budget: ByteBudget | None) -> RingRetention:
        """The upstream's bytes."""
        return RingRetention(self._memory, _RING_AT, RING_BYTES, self._set_base, budget)

    def _set_base(self, base: int) -> None:
        struct.pack_into("<Q", self._memory, _BASE_AT, base)

    def write(self, record: Mapping[str, Any]) -> None:
        """Replace the record. Raises ValueError where it is too long, more than some 4000 bytes of JSON."""
        text = json.dumps(record).encode()
        if len(text) > _PAGE - 4:
            raise ValueError(f"a record of {len(text)} bytes")
        turn = 1 - self._memory[_TURN_AT]
        at = _PAGE * (1 + turn)
        struct.pack_into("<I", self._memory, at, len(text))
        self._memory[at + 4 : at + 4 + len(text)] = text
        self._memory[_TURN_AT] = turn

    def read(self) -> dict[str, Any]:
        """The record. Raises ValueError where there is none."""
        at = _PAGE * (1 + self._memory[_TURN_AT])
        (length,) = struct.unpack_from("<I", self._memory, at)
        record = json.loads(self._memory[at + 4 : at + 4 + min(length, _PAGE - 4)])
        if not isinstance(record, dict):
            raise ValueError("the record is none")
        return record


def _create() -> int:
    try:
        descriptor = os.memfd_create("msocks-flow", os.MFD_CLOEXEC | _NOEXEC_SEAL)
    except OSError:  # an older kernel
        descriptor = os.memfd_create("msocks-flow", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _RING_AT + RING_BYTES)
    return descriptor
