"""The control channels as the path watch sees them: a means to ask the proxy where UDP is blocked, and more."""

from __future__ import annotations

import socket
from typing import Protocol


class ControlPath(Protocol):
    """The control channels, as a means to ask the proxy."""

    def ping(self, link: str, number: int) -> bool:
        """Send a ping over the channel of that link; False where none is open. `PathWatch.answered` tells the rest."""

    def socket_of(self, link: str) -> socket.socket | None:
        """The socket of that link's channel, if that stands and its other end has proved to be the proxy."""

    def verify_all(self) -> None:
        """Make sure that each channel still lives."""

    def retry(self, link: str) -> None:
        """Something has changed on that link: whatever waits for a next attempt there shall not wait."""
