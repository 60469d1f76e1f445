"""What conduits need of the datapath that made them."""

from __future__ import annotations

from typing import Protocol

from msocks.datapath.relay import RelayDatapath
from msocks.datapath.splice.events import HeldPacket
from msocks.datapath.splice.held_bytes import HeldBytes
from msocks.datapath.splice.rate_limited_log import RateLimitedLog
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.residual import ResidualClock
from msocks.datapath.splice.server_legs import ServerLegs
from msocks.datapath.splice.tables import Tables
from msocks.protocol.leg import DatapathReason
from msocks.transport.reactor import Reactor


class SlotEvents(Protocol):
    """Who is told what the kernel's half has seen of one session."""

    def on_leg_reset(self, generation: int) -> None:
        """An exact RST of the mobile's side has come."""

    def on_server_reset(self) -> None:
        """An exact RST of the server's has come."""

    def on_finished(self) -> None:
        """Both FINs are acknowledged."""

    def on_expired(self) -> None:
        """The kernel's half has given up the entry: nothing has passed for days."""

    def on_reply_missing(self) -> None:
        """The mobile has what came behind the reply."""

    def on_held(self, packet: HeldPacket) -> None:
        """A segment of the server's was copied: no leg carries, or a later one is at its beginning."""


class SpliceHost(Protocol):
    """What a conduit needs of its datapath."""

    @property
    def reactor(self) -> Reactor:
        """The event loop's part for sockets."""

    @property
    def tables(self) -> Tables:
        """The kernel half's tables."""

    @property
    def output(self) -> RawOutput:
        """Sends what was crafted."""

    @property
    def residuals(self) -> ResidualClock:
        """Tells when something has to be said again."""

    @property
    def server_legs(self) -> ServerLegs:
        """Slots and ports."""

    @property
    def shortage(self) -> RateLimitedLog:
        """Whom to tell when room has run out."""

    @property
    def held(self) -> HeldBytes:
        """What all sessions hold while their servers wait."""

    def relay(self, reason: DatapathReason) -> RelayDatapath:
        """The relay, for a session that cannot be spliced for that reason."""

    def enter(self, slot: int, conduit: SlotEvents) -> None:
        """Events about the slot are the conduit's."""

    def leave(self, slot: int) -> None:
        """The opposite; the slot itself goes when the kernel's half frees it."""
