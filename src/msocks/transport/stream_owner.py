"""Whom a leg stream tells what becomes of it."""

from __future__ import annotations

from typing import Protocol


class StreamOwner(Protocol):
    """Who is told what becomes of a stream. The calls come from the reactor; none may block."""

    def on_readable(self) -> None:
        """read() may give something now."""

    def on_writable(self) -> None:
        """The stream takes bytes again."""

    def on_leg_lost(self, generation: int, error: OSError) -> None:
        """The newest leg is dead. Its unread bytes stay readable; attach another."""

    def on_acknowledged(self) -> None:
        """The peer's kernel has ACKed everything, the FIN included."""
