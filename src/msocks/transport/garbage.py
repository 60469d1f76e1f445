"""Python's garbage collector in a daemon that others wait for."""

from __future__ import annotations

import gc


def spare_collections() -> None:
    """Never look again at what is there now: to be called once, at the end of the start.

    The modules, and what is made of them at the start, are some 65,000 objects for ever. To look through them takes
    some 40 ms, which the collector would do again and again, at whatever moment another object is made.
    """
    gc.collect()
    gc.freeze()
