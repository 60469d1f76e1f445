"""The splice loaded in a network namespace and a BPF file system of the test's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.own_network import OwnNetwork, own_bpffs, own_network

from msocks.datapath.splice import loader
from msocks.datapath.splice.loader import SpliceProgram

SLOTS = 16


@contextlib.contextmanager
def own_host() -> Iterator[tuple[OwnNetwork, Path]]:
    """A network, and a directory for pins that does not exist yet."""
    with own_network() as network, own_bpffs() as pins:
        yield network, pins / "msocks" / "proxy"


@contextlib.contextmanager
def loaded(pins: Path, *, slots: int = SLOTS) -> Iterator[SpliceProgram]:
    """The splice, until the block ends; the pins stay."""
    program = loader.load(pins, slots=slots)
    try:
        yield program
    finally:
        program.close()
