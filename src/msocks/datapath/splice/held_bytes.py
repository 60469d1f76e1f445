"""How much is held of what servers have sent into outages; see `parked`."""

from __future__ import annotations


class HeldBytes:
    """Of all sessions of a proxy."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0
