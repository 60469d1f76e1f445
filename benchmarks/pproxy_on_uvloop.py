"""Runs pproxy, with its own arguments, on uvloop, which is its fastest form.

    python -m benchmarks.pproxy_on_uvloop ARGUMENTS ...

By itself pproxy 2.7 ends at its start where a present uvloop is installed: it asks for the current event loop before
there is one, which uvloop no longer makes up.
"""

from __future__ import annotations

import asyncio

import uvloop
from pproxy.server import main


def _install() -> None:
    """What `uvloop.install` does, and the loop that pproxy expects to be there."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.set_event_loop(uvloop.new_event_loop())


if __name__ == "__main__":
    uvloop.install = _install
    main()
