"""How many descriptors a process may have: many connections soon reach the soft limit of most systems, 1024."""

from __future__ import annotations

import contextlib
import resource


def raise_descriptor_limit() -> None:
    """Have as many as the hard limit allows. Nothing changes where the kernel refuses."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
