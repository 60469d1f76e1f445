"""Loads the eBPF objects, attaches them to nothing, and lets go of them: does the verifier take them, at what cost?

Run by `make bpf`, as root. Where the verifier refuses, its whole log is printed.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from msocks.datapath.splice import libbpf
from msocks.datapath.splice.loader import OBJECT as SPLICE
from msocks.interception.hooks import OBJECT as HOOKS


def main() -> int:
    """The exit status."""
    return max(_load(path) for path in (SPLICE, HOOKS))


def _load(path: Path) -> int:
    with contextlib.closing(libbpf.BpfObject(path)) as trial:
        try:
            trial.load()
        except libbpf.BpfError as error:
            print(error.log, file=sys.stderr)
            print(f"{path.name}: {error.strerror}", file=sys.stderr)
            return 1
        for name, program in trial.programs().items():
            print(f"{name:<24} {libbpf.verified_instructions(program):>8} of 1000000 instructions verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
