"""The datapath as the proxy's control plane sees it.

A *conduit* carries one session between its server leg and one mobile leg after the other. The interface speaks of
stream offsets, stopped legs and replies, never of buffers, because a splice has none: it reads the state of a stopped
leg from packet headers, and must know the reply before it is written, for the reply's sequence numbers are part of the
mapping that it installs. It says who owns a socket, because a splice makes sockets vanish; and it is asked before a
socket listens or connects, because what two ends have agreed on in their SYNs cannot be changed afterwards.

How a session begins, in any datapath::

    datapath.prepare_listener(listening)        # bound, not yet listening
    datapath.prepare_server_leg(server, ..)     # made, not yet connecting
    conduit = datapath.open(server, owner, resumable=..)    # connected
    carriage = conduit.carriage_for(leg)        # what will carry it: the reply says so
    conduit.attach(Attachment(leg, ..))

And how it is reconnected, where everything that can be refused is refused before the live leg is touched::

    carriage = conduit.carriage_for(leg)        # NONE: CANNOT_SPLICE; no handover: LEG_GONE
    resume(position, conduit.state())           # OffsetError: BAD_OFFSETS
    conduit.stop_leg(handover=.., successor=..) # only now is the live leg touched
    await conduit.settle()                      # packets that are already inside the datapath finish
    carriage = conduit.carriage_for(leg)        # the new leg may have been lost meanwhile, or the live one
    begin = resume(position, conduit.state())   # exact now
    conduit.attach(Attachment(leg, ..))         # or conduit.restart_leg(), where the new leg came to nothing

And how a process goes on with what an earlier one has left to the datapath, before it serves anybody::

    for survivor in datapath.survivors():
        datapath.adopt(survivor, owner, resumable=..)       # or, where it has ended, nothing

Everything but `settle` is synchronous and returns at once. From the last `carriage_for` to `attach` nothing may be
awaited. Neither datapaths nor conduits are thread-safe.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from msocks.errors import EndReason
from msocks.protocol.leg import DatapathKind, DatapathReason
from msocks.session.byte_budget import ByteBudget
from msocks.session.resume import StreamState
from msocks.values.endpoint import Address, Endpoint


class LegEnd(StrEnum):
    """How a leg ended, seen from the proxy."""

    RESET = "reset"  # an RST came, which on a mobile leg means detached
    TIMED_OUT = "timed-out"  # this host's kernel gave up, or a router said that there is no way
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Carriage:
    """What carries a session over a certain leg, as the reply tells it.

    Attributes:
        kind: NONE where the leg cannot be carried at all (LegStatus.CANNOT_SPLICE).
        reason: Why it is not the splice; UNSPECIFIED where it is.
        handover: Whether the present leg could hand over to it. Where not, the client must take over instead.
    """

    kind: DatapathKind
    reason: DatapathReason
    handover: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """What went through.

    Attributes:
        up: Bytes to the server; retransmissions and repetitions not counted, FINs neither.
        down: Bytes from it, likewise.
        packets_up: As a splice has passed them on, a train as one; None in a relay, as are those that follow.
        packets_down: The same of the other direction.
        dropped: Packets of either direction that a splice has dropped.
        idle_s: Since a splice has passed on the last one.
    """

    up: int
    down: int
    packets_up: int | None = None
    packets_down: int | None = None
    dropped: int | None = None
    idle_s: float | None = None


class ConduitOwner(Protocol):
    """Who is told what becomes of a conduit.

    Calls come from the event loop, never from within a call of the owner to the conduit or the datapath; none may
    block. After `Conduit.close` none comes.
    """

    @property
    def budget(self) -> ByteBudget | None:
        """What the bytes that the conduit holds for the mobile count in, from `open` on; None for no limit.

        At its limit the conduit takes no more than `byte_budget.SHARE_BYTES` from the server before the mobile has
        ACKed what is held.
        """

    def on_leg_ended(self, generation: int, end: LegEnd) -> None:
        """The mobile leg of that generation is gone, and is stopped; the session waits for another.

        Comes at most once for a generation, and for no generation but the newest attached. A handover that does not
        come to its end is not told: the client notices, and takes over. It need not come: a leg that just falls
        silent has no timer in a splice.
        """

    def on_server_lost(self, end: LegEnd) -> None:
        """The server leg was reset or given up. close() comes next. Comes at most once.

        Bytes that the server had sent before may not have reached the mobile. A relay, which has them, waits until
        they have; in a splice only the server could send them again.
        """

    def on_bytes_lost(self, reason: str) -> None:
        """The session cannot go on without a gap. close() comes next."""

    def on_finished(self) -> None:
        """Both directions have ended and everything was delivered, FINs included. close() comes next."""


@dataclass(frozen=True, slots=True)
class Successor:
    """A mobile leg to which the present one is going to hand over, as far as it is known before it is attached.

    Attributes:
        sock: The leg; it stays the caller's.
        up_from: A.
        request_bytes: What its end has sent before the stream.
        reply_bytes: Length of the reply that it is going to get.
    """

    sock: socket.socket
    up_from: int
    request_bytes: int
    reply_bytes: int


@dataclass(slots=True)
class Attachment:
    """A mobile leg whose request was accepted, before its reply is written.

    Attributes:
        sock: The leg: connected, non-blocking, no other descriptor of it anywhere (no `dup`, no copy kept by a process
            that passed it on: a splice makes the connection vanish from this host by closing it). A reactor that
            watches it hands the watch over. What was written to it before (a method selection) counts in no offset.
        generation: Above that of every leg before.
        reply: Written by the conduit before the first byte of the stream.
        down_from: D, from `resume`.
        up_from: A: the offset of the first upstream byte on this leg, from the request.
        early: Upstream bytes that were read from `sock` behind the request, from A on. More of them may lie unread in
            the socket; the conduit finds those itself. A relay takes them. A splice may not take them from a mobile
            that can reconnect: U does not include them, the mobile keeps them, the server only gets a copy.
        handover: The present leg was stopped with `handover`; it delivers what was sent on it, this one begins behind.
        split: A middlebox ACKs on it in the mobile's place: `Conduit.confirm` tells what has arrived. Where a splice
            carries it all the same, the server hears such ACKs, and lets go of what is lost with the middlebox.
    """

    sock: socket.socket
    generation: int
    reply: bytes
    down_from: int
    up_from: int
    early: bytes = b""
    handover: bool = False
    split: bool = False


@dataclass(frozen=True, slots=True)
class Survivor:
    """A session that the datapath has carried on since its process died.

    Attributes:
        place: The datapath's own name for it, good for this process.
        identity: As the conduit of the process that died gave it.
        server: The server leg's remote end.
        bound: The server leg's local end.
        client: The newest mobile leg's remote end.
        generation: Of the newest mobile leg.
        up_from: A of that leg.
        down_from: D of that leg, or beyond.
        resumable: As `Datapath.open` was told.
        parked: That leg carries nothing any more.
        end: How it has ended meanwhile; None while it goes on.
        down_fin: The final length of the downstream, where the server has ended it.
    """

    place: int
    identity: bytes
    server: Endpoint
    bound: Endpoint
    client: Endpoint
    generation: int
    up_from: int
    down_from: int
    resumable: bool
    parked: bool
    end: EndReason | None
    down_fin: int | None


class Conduit(Protocol):
    """One session's datapath."""

    @property
    def kind(self) -> DatapathKind:
        """What carries the session: NONE before the first leg, then what `carriage_for` said of the newest leg."""

    @property
    def reason(self) -> DatapathReason:
        """Why it is not the splice."""

    @property
    def identity(self) -> bytes | None:
        """What names the session in a datapath that carries it on when this process dies: with all probability no
        session before or after has the same. None where it would end with the process. Before the first leg, it holds
        if that is carried by the splice.
        """

    def carriage_for(self, leg: socket.socket, *, split: bool = False) -> Carriage:
        """What would carry the session over this leg, which stays the caller's. Changes nothing.

        The first leg decides between splice and relay, as only then the options of both legs are known. One on which a
        middlebox ACKs in the mobile's place (`split`) is relayed: a splice would tell the server of its ACKs. So is a
        session that was spliced, from such a leg on, if neither direction has ended; it takes over. Any other later
        leg may be refused (kind NONE). An `attach` that follows in the same turn of the event loop does what the answer
        says. A leg that is lost already gets some answer.
        """

    def stop_leg(self, *, handover: bool = False, successor: Successor | None = None) -> None:
        """Let the present mobile leg (if any) carry nothing more in either direction; it is not closed yet.

        With `handover` it carries nothing new downstream, but delivers what was sent on it, and goes on receiving.
        What comes for a stopped leg in a splice is lost and sent again, so that stopping in vain costs the session a
        retransmission. Where it is told to which leg this one hands over (`successor`, of which `carriage_for` was
        asked last), nothing is lost: that leg gets at once what comes. No-op where no leg carries.
        """

    def park(self, received: int) -> None:
        """The mobile leg is gone, says the client, which has received the downstream up to `received` (R).

        Stops the leg. A splice tells the server at once what the mobile has, and holds a little of what it sends now;
        what cannot be true of `received` is not believed. The session waits for `attach`.
        """

    def confirm(self, generation: int, received: int, *, at_end: bool, split: bool) -> None:
        """The mobile says that it has received the downstream up to `received`, and the FIN behind that.

        With `split` it has found out that the ACKs on its leg of `generation` are a middlebox's.
        """

    async def settle(self) -> None:
        """Wait until what was inside the datapath when the leg was stopped has left it: a few milliseconds at most."""

    def state(self) -> StreamState:
        """Where both streams are.

        Exact once the leg is stopped and settled (`down_sent` with either way of stopping, the rest without a
        handover; the `up_taken` of a relay may still grow, which harms nobody who was told less). While a leg carries,
        every offset was true a moment ago; none ever decreases (`down_sent`, which a takeover sets back, excepted), and
        a FIN once known stays. Hence what `resume` refuses then it would refuse later too.

        `down_acknowledged` and `up_taken` count no FIN. `up_fin` and `down_fin` mean that the FIN has come to the
        datapath, not that it was ACKed: a new leg carries both FINs again, whoever has seen them.
        """

    def restart_leg(self) -> None:
        """Let the stopped leg carry again: the new one came to nothing. No-op where it is gone, or none was stopped."""

    def attach(self, leg: Attachment) -> None:
        """Carry on over a new leg; the stopped one is drained where it still holds bytes, and closed.

        The conduit owns the socket once this returns. A leg that was lost meanwhile is no error: on_leg_ended follows.

        Raises ValueError where an offset is outside what state() gives, or `carriage_for` denies it: nothing has
        changed then, and the socket is still the caller's.
        """

    def hang_up(self, up_end: int) -> None:
        """The mobile node is done with the session: the server gets the upstream up to `up_end`, then a FIN.

        No leg carries any more, and what the server still sends is received and discarded. on_finished() comes when
        the server has ended its direction too; on_server_lost() as ever. `up_end` is what state() gave as `up_taken`.
        The conduit stops the leg and lets it settle by itself, before the FIN.
        """

    def counters(self) -> Counters:
        """So far. Read from memory: a splice shares its entry with the kernel."""

    def close(self, *, reset: bool) -> None:
        """End it: the server gets RST (`reset`) or the orderly end that both directions have agreed on.

        Returns at once. The sockets that the conduit still has are closed; what has to outlast that (an RST repeated
        until the server takes it, TIME-WAIT of both legs, silence toward the mobile) is the datapath's.
        """


class Datapath(Protocol):
    """Makes conduits. One per proxy process; several processes may share one port."""

    @property
    def kind(self) -> DatapathKind:
        """The best that this datapath can do; a session may get less, see `Conduit.carriage_for`."""

    def prepare_listener(self, sock: socket.socket) -> None:
        """To be called for a TCP socket that is bound and does not listen yet, whose connections may become legs.

        From the first SYN on, the datapath sees to it that the host's kernel promises a mobile nothing that a splice
        could not keep (options that no server leg can match; ACKs of upstream bytes behind a RECONNECT). It ends when
        the socket is closed.
        """

    def prepare_server_leg(
        self,
        sock: socket.socket,
        *,
        destination: tuple[Address, int],
        leg: socket.socket | None,
        smallest_mtu: int | None,
    ) -> None:
        """To be called for every TCP socket that may become a server leg, after socket() and before connect().

        The datapath may bind it (a port of its own range; the address stays open) and set options. What the caller
        sets does not survive a splice: keep-alive of a session is the datapath's. A socket that does not come to
        `open` is simply closed, nothing is left of the preparation.

        Args:
            sock: Not bound; of the family of the destination's address.
            destination: Address (never an IPv4-mapped one) and port that it will be connected to: local ports in use
                differ by destination, and packets of the handshake are told by it.
            leg: The mobile leg that waits for it: what it has agreed on (timestamps, SACK, MSS) is asked of the server
                too. It stays the caller's. None where the leg was lost meanwhile.
            smallest_mtu: Bytes; the smallest of the mobile node's links, as it told on its control channel. The
                server's segments must fit all of them. None for a plain client.

        Raises:
            OSError: EADDRNOTAVAIL where no local port is left for a server leg.
        """

    def open(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> Conduit:
        """A conduit for a connected, non-blocking server leg, which it owns from now on.

        `server` was prepared, nothing was read from it or written to it, and no other descriptor of it exists. A
        reactor that watches it hands the watch over. Until the first leg is attached the server may be kept from
        sending.

        `resumable` is False for plain SOCKS5 clients: their only leg's RST is the program's, and a splice lets it
        through to the server.
        """

    def open_accepted(self, server: socket.socket, owner: ConduitOwner, *, resumable: bool) -> Conduit:
        """The same for a connection that a peer has made to this host (BIND): nothing was prepared."""

    async def troubles(self) -> dict[str, dict[str, int]]:
        """What the datapath as a whole has lost or refused since it began, for the operator: counts by kind and cause.

        Empty where it counts nothing. Raises no error of the host's: what cannot be asked is left out.
        """

    def survivors(self) -> list[Survivor]:
        """The sessions of an earlier process that nobody has adopted, as they stand now."""

    def adopt(self, survivor: Survivor, owner: ConduitOwner, *, resumable: bool) -> Conduit:
        """The conduit of a survivor that has not ended. To be called in the turn of the event loop of `survivors`.

        Nothing of the session is disturbed. Where bytes have died with the earlier process that nobody else has,
        on_bytes_lost() follows, within seconds.

        `resumable` may be False where the survivor was True, and nobody knows any more who may reconnect it: its leg
        is its last, as a plain client's.
        """

    def close(self) -> None:
        """Let go of what the datapath itself holds in this process; conduits are closed by their owners before."""
