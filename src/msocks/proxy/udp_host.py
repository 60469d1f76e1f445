"""What a UDP association needs of whoever keeps them all, and what it tells the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from msocks.proxy.udp_relay import Destinations
from msocks.transport.reactor import Reactor
from msocks.values.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class UdpView:
    """What the operator sees of a UDP association.

    Attributes:
        user: Whose it is; empty where nobody was asked.
        mobile: It is a UDP flow of an agent, which can change its path; else a plain SOCKS5 client's.
        client: Where the client's datagrams come from; None before the first.
        port: The port that servers see.
        sent: Datagrams to servers.
        received: Datagrams from servers.
        bytes_up: Their payload.
        bytes_down: Their payload.
        paths: How many paths a mobile one has had.
        opened_at: Seconds of the loop's clock.
        dropped: Datagrams that went no further, by cause.
    """

    user: str
    mobile: bool
    client: Endpoint | None
    port: int
    sent: int
    received: int
    bytes_up: int
    bytes_down: int
    paths: int
    opened_at: float
    dropped: dict[str, int]


class UdpAssociation(Protocol):
    """One of them."""

    @property
    def user(self) -> str:
        """Whose it is."""

    def view(self) -> UdpView:
        """What there is to know of it now."""

    def close(self) -> None:
        """End it."""


class UdpHost(Protocol):
    """Who keeps them."""

    @property
    def reactor(self) -> Reactor:
        """Watches their sockets."""

    @property
    def destinations(self) -> Destinations:
        """Where they may send."""

    def heard(self, association: UdpAssociation) -> None:
        """It is in use: its idle time begins anew."""

    def ended(self, association: UdpAssociation) -> None:
        """It is over; forget it."""
