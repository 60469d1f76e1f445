"""The splice loaded in a network namespace and a BPF file system of the test's own; and other programs compiled."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hatch_build
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


def compiled(source: Path) -> Path:
    """The eBPF object of a source file, beside it."""
    built = source.with_suffix(".o")
    headers = [f"-I{path}" for path in hatch_build.multiarch_headers()]
    command = [hatch_build.clang(), "-O2", "-g", "-target", "bpf", "-mcpu=v3", *headers, "-c", str(source)]
    subprocess.run([*command, "-o", str(built)], check=True, timeout=30)
    return built
