"""The datapath as the proxy's control plane sees it.

A *conduit* carries one session between its server leg and one mobile leg after the other. The interface speaks of
stream offsets, stopped legs and replies, never of buffers, because a splice has none: it reads the state of a stopped
leg from packet headers, and must know the reply before it is written, for the reply's sequence numbers are part of the
mapping that it installs.

The order of a reconnect, in any datapath::

    conduit.stop_leg()                     # the old leg carries nothing more
    await conduit.settle()                 # packets that are already on their way through the datapath finish
    state = conduit.state()                # U, what the old leg had ACKed, the FINs
    resume = session.resume(request, state)  # D, or a refusal: nothing has changed yet but the stopped leg
    conduit.attach(leg, generation, reply, resume.., early)   # or conduit.restart_leg() after a refusal
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.resume import StreamState


class LegEnd(StrEnum):
    """How a mobile leg ended, seen from the proxy."""

    RESET = "reset"  # an RST came, which on a mobile leg means detached
    TIMED_OUT = "timed-out"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes that went through, by direction, retransmissions and repetitions not counted."""

    up: int
    down: int


class ConduitOwner(Protocol):
    """Who is told what becomes of a conduit; calls come from the event loop, none may block."""

    def on_leg_ended(self, generation: int, end: LegEnd) -> None:
        """The mobile leg is gone; the session waits for another."""

    def on_server_reset(self, error: OSError) -> None:
        """The server leg was reset or timed out. close() comes next."""

    def on_bytes_lost(self, reason: str) -> None:
        """The session cannot go on without a gap. close() comes next."""

    def on_finished(self) -> None:
        """Both directions have ended and everything was delivered. close() comes next."""


class Conduit(Protocol):
    """One session's datapath. Not thread-safe."""

    @property
    def kind(self) -> DatapathKind:
        """Which datapath this is."""

    @property
    def reason(self) -> DatapathReason:
        """Why it is not the splice."""

    def stop_leg(self) -> None:
        """Let the present mobile leg (if any) carry nothing more in either direction; it is not closed yet."""

    async def settle(self) -> None:
        """Wait until what was on its way through the datapath when the leg was stopped has left it."""

    def state(self) -> StreamState:
        """Where both streams are. Exact only while no leg carries."""

    def restart_leg(self) -> None:
        """Let the stopped leg carry again: the reconnect was refused."""

    def attach(self, leg: Attachment) -> None:
        """Carry on over a new leg; the stopped one is drained where it still holds bytes, and closed.

        Raises ValueError where an offset is outside what state() gave.
        """

    def hang_up(self, up_end: int) -> None:
        """The mobile node is done with the session: the server gets the upstream up to `up_end`, then a FIN.

        No leg carries any more, and what the server still sends is discarded. on_finished() comes when the server has
        ended its direction too; on_server_reset() as ever. `up_end` is what state() gave as `up_taken`.
        """

    def counters(self) -> Counters:
        """Bytes so far."""

    def close(self, *, reset: bool) -> None:
        """End it: the server gets RST (`reset`) or the orderly end that both directions have agreed on."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A mobile leg whose request was accepted, before its reply is written. The conduit owns the socket from now on."""

    sock: socket.socket  # connected, non-blocking
    generation: int
    reply: bytes  # written by the conduit before the first byte of the stream
    down_from: int  # D
    up_from: int  # A: offset of the first upstream byte on this leg
    early: bytes = b""  # upstream bytes that came in behind the request
    handover: bool = False  # the present leg was not stopped: it delivers what was sent on it, this one begins behind


class Datapath(Protocol):
    """Makes conduits."""

    @property
    def kind(self) -> DatapathKind:
        """Which datapath this is."""

    def open(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> Conduit:
        """A conduit for a connected, non-blocking server leg, which it owns from now on.

        `resumable` is False for plain SOCKS5 clients: their only leg's RST is the program's.
        """

    def close(self) -> None:
        """Let go of what the datapath itself holds; conduits are closed by their owners."""
