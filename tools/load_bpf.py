"""Loads the splice's eBPF object, attaches it to nothing, and lets go of it: does the verifier take it, at what cost?

Run by `make bpf`, as root. Where the verifier refuses, its whole log is printed.
"""

from __future__ import annotations

import contextlib
import sys

from msocks.datapath.splice import libbpf
from msocks.datapath.splice.loader import OBJECT


def main() -> int:
    """The exit status."""
    with contextlib.closing(libbpf.BpfObject(OBJECT)) as trial:
        try:
            trial.load()
        except libbpf.BpfError as error:
            print(error.log, file=sys.stderr)
            print(f"{OBJECT.name}: {error.strerror}", file=sys.stderr)
            return 1
        for name, program in trial.programs().items():
            print(f"{name:<24} {libbpf.verified_instructions(program):>8} of 1000000 instructions verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
