"""The messages of an MSOCKS leg as values. `leg_request_codec` and `leg_reply_codec` turn them into bytes and back.

Offsets count payload bytes of one direction from the beginning of the session; FIN and SYN count nothing. "Down" is
server to mobile, "up" is mobile to server. R, A, D and U are the letters of `docs/reference/protocol.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from msocks.protocol.fields import MAX_OFFSET, MAX_U32, MAX_U64, check_range
from msocks.values.endpoint import Endpoint
from msocks.values.ids import FIRST_GENERATION, MAX_GENERATION, AssociationId, SessionId

LEG_VERSION = 1


class LegCommand(IntEnum):
    """What a leg asks for. CONNECT and BIND have the numbers of RFC 1928."""

    CONNECT = 0x01
    BIND = 0x02
    RECONNECT = 0x81
    QUERY = 0x82
    CLOSE = 0x83


class CloseMode(IntEnum):
    """How CLOSE ends a session."""

    GRACEFUL = 1
    """The server gets what the proxy has taken, then a FIN; what the server still sends is discarded."""
    RESET = 2
    """The server gets an RST."""


class LegStatus(IntEnum):
    """The proxy's verdict. Final only in a verified reply, see `ReceivedReply.ends_session`."""

    OK = 0x00
    UNKNOWN_ASSOCIATION = 0x01
    """The proxy has no such keys (it was restarted); never MACed. Say HELLO again."""
    BAD_MAC = 0x02
    """The request's MAC does not fit the association's key; never MACed. Say HELLO again."""
    MALFORMED = 0x03
    """The request cannot be read; never MACed."""
    REPLAYED = 0x04
    """The leg number was used before or is too old. Try again with a new one."""
    EXPIRED = 0x05
    """The request came after its expiry. Try again with the clock of this reply."""
    STALE_GENERATION = 0x06
    """The generation is not above the session's, which the reply tells. Try again with a higher one."""
    BUSY = 0x07
    """The session cannot be taken over at this moment. Try again soon."""
    LIMIT = 0x08
    """A limit of the user or the proxy is reached. A CONNECT fails; a RECONNECT tries again later."""
    CANNOT_SPLICE = 0x09
    """This leg does not fit the session's datapath (its TCP options). The session stays parked; try another link."""
    BAD_OFFSETS = 0x0A
    """R or A lies outside what was sent or is still retained: the streams cannot be joined without a gap."""
    REFUSED = 0x0B
    """The command failed with the SOCKS reply code in the reply."""
    UNKNOWN_SESSION = 0x0C
    """The user has no such session."""
    ENDED_RESET = 0x0D
    """The server reset the connection."""
    ENDED_FIN = 0x0E
    """Both directions were closed and delivered."""
    ENDED_EXPIRED = 0x0F
    """No leg came within the detach grace."""
    ENDED_CLOSED = 0x10
    """An authenticated CLOSE came before, or the operator ended the session."""
    ENDED_TIMED_OUT = 0x11
    """The server stopped acknowledging and TCP gave up."""
    ENDED_BYTES_LOST = 0x12
    """Bytes acknowledged to one side cannot be had any more from the other."""
    LEG_GONE = 0x13
    """The leg that is to hand over is not live. Take the session over instead."""


UNVERIFIABLE_STATUSES = frozenset({LegStatus.UNKNOWN_ASSOCIATION, LegStatus.BAD_MAC, LegStatus.MALFORMED})
"""What the proxy says where it has no key that both sides agree on. Such a reply carries no MAC."""

_ENDING = frozenset(
    {
        LegStatus.BAD_OFFSETS,
        LegStatus.REFUSED,
        LegStatus.UNKNOWN_SESSION,
        LegStatus.ENDED_RESET,
        LegStatus.ENDED_FIN,
        LegStatus.ENDED_EXPIRED,
        LegStatus.ENDED_CLOSED,
        LegStatus.ENDED_TIMED_OUT,
        LegStatus.ENDED_BYTES_LOST,
    }
)


class DatapathKind(IntEnum):
    """What carries the session's bytes at the proxy."""

    NONE = 0
    RELAY = 1
    SPLICE = 2


class DatapathReason(IntEnum):
    """Why the session is relayed. A number that is not listed reads as UNSPECIFIED."""

    UNSPECIFIED = 0
    CHOSEN_BY_OPERATOR = 1
    NO_KERNEL_SUPPORT = 2
    NO_PRIVILEGE = 3
    LOCAL_SERVER = 4
    """The server is on the proxy's own host."""
    UNEQUAL_OPTIONS = 5
    """The TCP options of the two legs cannot be reconciled."""
    PATH_MTU = 6
    NO_ROOM = 7
    """The table or the port range of the splice is full."""
    TINY_WINDOW = 8
    """The server's window does not hold two of the segments that the mobile was told it may send."""
    ACCEPTED = 9
    """The server is a peer that has connected to the proxy, and what its connection agreed on is settled."""
    MIDDLEBOX = 16
    """Something on a leg's link ACKs in the client's place: a splice would pass such ACKs on to the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegRequest:
    """What every request says.

    Attributes:
        association: Whose keys authenticate the leg.
        leg_number: Unique within the association, 0 to 2^64-1; rises by one per leg, whatever the link.
        expires_ms: The proxy's clock (milliseconds) after which the request is refused.
        session: The session it is about.
        generation: See each command.

    Raises:
        ValueError: A field is outside its range.
    """

    association: AssociationId
    leg_number: int
    expires_ms: int
    session: SessionId
    generation: int

    def __post_init__(self) -> None:
        check_range(self.leg_number, MAX_U64, "the leg number")
        check_range(self.expires_ms, MAX_U64, "the expiry")
        check_range(self.generation, MAX_GENERATION, "the generation")


def _check_leg_generation(generation: int) -> None:
    if generation < FIRST_GENERATION:
        raise ValueError(f"the generation of a leg is at least {FIRST_GENERATION}, not {generation}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect(LegRequest):
    """Open a session and carry it; or, with a known session id and the same destination, carry that one on.

    The second form is for a reply that did not come: it is a `Reconnect` with R = A = 0 that also works where the first
    CONNECT never arrived. Another destination for a known id is refused with the reply code 0x02.

    Attributes:
        generation: 1, or higher when the CONNECT is repeated.
        destination: The server.
        middlebox: Something on the leg's link ACKs in the ends' place (a performance-enhancing proxy, RFC 3135): what
            is sent on this leg has arrived when RECEIVED on a control channel says so, and not before.
    """

    destination: Endpoint
    middlebox: bool = False

    def __post_init__(self) -> None:
        LegRequest.__post_init__(self)
        _check_leg_generation(self.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind(LegRequest):
    """Reserved: accept a connection at the proxy (RFC 1928 section 4). Version 1 answers REFUSED, reply code 0x07.

    Attributes:
        generation: As in `Connect`.
        destination: The peer that is expected.
    """

    destination: Endpoint

    def __post_init__(self) -> None:
        LegRequest.__post_init__(self)
        _check_leg_generation(self.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect(LegRequest):
    """Carry a known session on over this leg.

    Attributes:
        generation: Above that of every leg this session had.
        received: R: bytes that the mobile's kernel has received in order, on all legs together.
        upstream_from: A: the offset of the first upstream byte that follows on this leg.
        down_fin_at: Where the mobile has received the server's FIN: the final length of the downstream, equal to R.
        up_fin_at: Where the program has closed its direction: the final length of the upstream, not below A.
        handover_from: Generation of the live leg, which delivers what was sent on it while this one begins behind that:
            A is then the end of what the client has written to it. 0 for a takeover, which stops it.
        first_flight: So many upstream bytes follow from A on, which is a guess, and no more before the reply: it says
            where the leg goes on (`msocks.session.first_flight`). 0 where A is none; at most A, and not in a handover.
        middlebox: As in `Connect`.
    """

    received: int
    upstream_from: int
    down_fin_at: int | None = None
    up_fin_at: int | None = None
    handover_from: int = 0
    first_flight: int = 0
    middlebox: bool = False

    def __post_init__(self) -> None:
        LegRequest.__post_init__(self)
        _check_leg_generation(self.generation)
        check_range(self.received, MAX_OFFSET, "R")
        check_range(self.upstream_from, MAX_OFFSET, "A")
        check_fin(self.down_fin_at, "down_fin_at")
        check_fin(self.up_fin_at, "up_fin_at")
        check_range(self.handover_from, MAX_GENERATION, "the generation that hands over")
        check_range(self.first_flight, min(MAX_U32, self.upstream_from), "the first flight")
        if self.first_flight and self.handover_from:
            raise ValueError("a leg that is handed over to begins where the other ends: it has no first flight")
        if self.first_flight and self.up_fin_at is not None and self.upstream_from + self.first_flight > self.up_fin_at:
            raise ValueError(f"the upstream ends at {self.up_fin_at}, within the first flight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(LegRequest):
    """Ask for a session's state. Nothing changes: the live leg stays live.

    Attributes:
        generation: The highest one that the client has used; information for the proxy's log, 0 where none.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Close(LegRequest):
    """End a session.

    Attributes:
        generation: Not below that of the session's live leg; else the reply is STALE_GENERATION.
        mode: How.
        up_fin_at: With GRACEFUL: the length of the upstream; BAD_OFFSETS where the proxy has not taken so much. None
            with RESET.
    """

    mode: CloseMode
    up_fin_at: int | None = None

    def __post_init__(self) -> None:
        LegRequest.__post_init__(self)
        check_fin(self.up_fin_at, "up_fin_at")
        if (self.up_fin_at is None) is (self.mode is CloseMode.GRACEFUL):
            raise ValueError("a graceful CLOSE says where the upstream ends, a reset does not")


def check_fin(offset: int | None, field: str) -> None:
    """Check an offset that may be absent.

    Raises:
        ValueError: It is outside 0 to 2^63-1.
    """
    if offset is not None:
        check_range(offset, MAX_OFFSET, field)


@dataclass(frozen=True, slots=True, kw_only=True)
class LegReply:
    """What the proxy answers. Fields that a status has no use for keep their defaults.

    Attributes:
        status: The verdict.
        socks_reply: With REFUSED: the SOCKS reply code (RFC 1928 section 6), 1 to 255; else 0.
        generation: The session's generation after this request; 0 where there is no session.
        down_from: D: the offset of the first downstream byte on this leg.
        up_acked: U: upstream bytes that the server has acknowledged (splice) or the proxy has taken (relay).
        down_fin_at: Where the proxy has received the server's FIN: the final length of the downstream.
        up_fin_at: Where the proxy has taken the mobile's FIN: the final length of the upstream.
        bound: The proxy's address toward the server.
        datapath: What carries the session.
        datapath_reason: Why it is not the splice.
        proxy_ms: The proxy's clock in milliseconds.

    Raises:
        ValueError: A field is outside its range.
    """

    status: LegStatus
    socks_reply: int = 0
    generation: int = 0
    down_from: int = 0
    up_acked: int = 0
    down_fin_at: int | None = None
    up_fin_at: int | None = None
    bound: Endpoint | None = None
    datapath: DatapathKind = DatapathKind.NONE
    datapath_reason: DatapathReason = DatapathReason.UNSPECIFIED
    proxy_ms: int = 0

    def __post_init__(self) -> None:
        if (self.status is LegStatus.REFUSED) is (check_range(self.socks_reply, 255, "the reply code") == 0):
            raise ValueError(f"status {self.status.name} does not go with reply code {self.socks_reply}")
        check_range(self.generation, MAX_GENERATION, "the generation")
        check_range(self.down_from, MAX_OFFSET, "D")
        check_range(self.up_acked, MAX_OFFSET, "U")
        check_fin(self.down_fin_at, "down_fin_at")
        check_fin(self.up_fin_at, "up_fin_at")
        check_range(self.proxy_ms, MAX_U64, "the proxy's clock")
        if self.bound is not None and self.bound.address is None:
            raise ValueError(f"the bound address {self.bound} is a name")


@dataclass(frozen=True, slots=True)
class ReceivedReply:
    """A reply as it came to the client.

    Attributes:
        reply: What it says.
        verified: Whether its MAC is right. Whatever an unverified reply says is a hint for the log and the next
            attempt, and never final.
    """

    reply: LegReply
    verified: bool

    @property
    def ends_session(self) -> bool:
        """Whether the session cannot be continued: a MACed verdict that says so."""
        return self.verified and self.reply.status in _ENDING
