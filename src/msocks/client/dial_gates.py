"""Who may ask the proxy for a leg now: when a link goes, all of its sessions want one at the same moment."""

from __future__ import annotations

import asyncio
from collections import defaultdict

AT_ONCE = 128
"""Legs that are asked for at a time over one link. A proxy answers no sooner where it is asked for more, and late
enough that those who wait ask again; and it closes the oldest of an address's connections that have not said what they
want, where they are more than 512."""


class DialGates:
    """One gate for each link, by its name, in the order of arrival."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._gates = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(at_once))

    def at(self, link: str) -> asyncio.Semaphore:
        """Held from before the dial until the proxy has answered."""
        return self._gates[link]
