"""The messages of the control channel as values. `msocks.protocol.control_codec` turns them into bytes and back.

The channel runs inside TLS 1.3 with the proxy's key pinned, so what the proxy says here is authenticated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from msocks.errors import EndReason
from msocks.protocol.fields import MAX_OFFSET, MAX_U16, MAX_U32, MAX_U64, check_range
from msocks.protocol.inbound import Incoming, Listen, Listening, Unlisten
from msocks.values.endpoint import Endpoint
from msocks.values.ids import MAX_GENERATION, AssociationId, SessionId
from msocks.values.user_name import check_user_name

CONTROL_VERSION = 1
KEY_BYTES = 32
SECRET_BYTES = 32
MAX_LABEL_BYTES = 255
MAX_REASON_TEXT_BYTES = 1024
MAX_LISTED_SESSIONS = 512
"""Of a PARK, a PARKED or a RECEIVED; longer lists are sent as several messages."""


class MessageType(IntEnum):
    """The type byte of a frame. A receiver ignores types that it does not know."""

    HELLO = 0x01
    WELCOME = 0x02
    REFUSED = 0x03
    PING = 0x04
    PONG = 0x05
    LEG_ACCEPTED = 0x06
    SESSION_ENDED = 0x07
    PARK = 0x08
    PARKED = 0x09
    DRAIN = 0x0A
    GOODBYE = 0x0B
    RECEIVED = 0x10
    LISTEN = 0x11
    LISTENING = 0x12
    INCOMING = 0x13
    UNLISTEN = 0x14


class RefusalCode(IntEnum):
    """Why a proxy does not go on with a control channel. An unknown number reads as UNSPECIFIED."""

    UNSPECIFIED = 0
    VERSION = 1
    """The proxy does not speak the client's version."""
    AUTHENTICATION = 2
    """There is no such user, or the secret is wrong. The proxy does not tell which."""
    LIMIT = 3
    """The user has too many associations or channels."""
    SHUTTING_DOWN = 4
    """The proxy is going down. Try again later, or at another of its addresses."""
    ASSOCIATION_TAKEN = 5
    """The association id belongs to another user. Choose a new one."""
    USER_REMOVED = 6
    """The operator removed the user while the channel was open."""


def _check_label(text: str, name: str, maximum: int = MAX_LABEL_BYTES) -> None:
    if len(text.encode()) > maximum:
        raise ValueError(f"{name} has more than {maximum} bytes")
    if not text.isprintable():
        raise ValueError(f"{name} has unprintable characters: {text!r}")


def _check_size(value: bytes, size: int, name: str) -> None:
    if len(value) != size:
        raise ValueError(f"{name} has {len(value)} bytes, not {size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Client: who I am. The first message of every channel, once.

    Attributes:
        user: The access link's user.
        secret: The access link's secret, 32 bytes.
        association: Chosen by the client; the same on the channels of all its links.
        smallest_mtu: The smallest MTU of the client's links in bytes; the proxy fits the servers' MSS to it.
        link: The link that carries the channel, for the operator's eyes; at most 255 bytes of UTF-8.
        agent_name: The client's software, at most 255 bytes of UTF-8.
        agent_version: Its version, at most 255 bytes of UTF-8.
        version: Of the control protocol.

    Raises:
        ValueError: A field is outside its range.
    """

    user: str
    secret: bytes = field(repr=False)
    association: AssociationId
    smallest_mtu: int
    link: str
    agent_name: str
    agent_version: str
    version: int = CONTROL_VERSION

    def __post_init__(self) -> None:
        check_user_name(self.user)
        _check_size(self.secret, SECRET_BYTES, "the secret")
        check_range(self.smallest_mtu, MAX_U16, "the smallest MTU")
        check_range(self.version, 255, "the version")
        _check_label(self.link, "the link's name")
        _check_label(self.agent_name, "the agent's name")
        _check_label(self.agent_version, "the agent's version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Proxy: the association stands. The answer to HELLO.

    Attributes:
        association: As in HELLO.
        key_up: Authenticates what the client sends on legs and in probes, 32 bytes.
        key_down: Authenticates what the proxy sends there, 32 bytes.
        proxy_ms: The proxy's clock in milliseconds, see `msocks.protocol.clock`.
        detach_grace_s: For how many seconds the proxy keeps a session without a leg, and an association without a
            channel.
        max_sessions: How many sessions the user may have at a time; 0 where nothing limits them.
        observed: The client's address as the proxy sees it; differs from the client's own where a NAT stands between.
        server_version: The proxy's version, at most 255 bytes of UTF-8.
        version: Of the control protocol.

    Raises:
        ValueError: A field is outside its range.
    """

    association: AssociationId
    key_up: bytes = field(repr=False)
    key_down: bytes = field(repr=False)
    proxy_ms: int
    detach_grace_s: int
    max_sessions: int
    observed: Endpoint
    server_version: str
    version: int = CONTROL_VERSION

    def __post_init__(self) -> None:
        _check_size(self.key_up, KEY_BYTES, "key_up")
        _check_size(self.key_down, KEY_BYTES, "key_down")
        if self.key_up == self.key_down:
            raise ValueError("the keys of the two directions are equal")
        check_range(self.proxy_ms, MAX_U64, "the proxy's clock")
        check_range(self.detach_grace_s, MAX_U32, "the detach grace")
        check_range(self.max_sessions, MAX_U32, "the session limit")
        check_range(self.version, 255, "the version")
        if self.observed.address is None:
            raise ValueError(f"the observed address {self.observed} is a name")
        _check_label(self.server_version, "the proxy's version")


@dataclass(frozen=True, slots=True)
class Refused:
    """Proxy: no (more) service on this channel; the last message. Sessions are not touched by it.

    Attributes:
        code: Why.
        text: The same for a person, at most 1024 bytes of UTF-8.
    """

    code: RefusalCode
    text: str = ""

    def __post_init__(self) -> None:
        _check_label(self.text, "the text", MAX_REASON_TEXT_BYTES)


@dataclass(frozen=True, slots=True)
class Ping:
    """Either side: answer at once. Keeps the channel alive, and probes the path where UDP is blocked.

    Attributes:
        nonce: Distinguishes pings, 0 to 2^64-1.
        time: The sender's own notion of time, 0 to 2^64-1, returned as it is.
    """

    nonce: int
    time: int

    def __post_init__(self) -> None:
        check_range(self.nonce, MAX_U64, "the nonce")
        check_range(self.time, MAX_U64, "the time")


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a PING with its numbers."""

    nonce: int
    time: int

    def __post_init__(self) -> None:
        check_range(self.nonce, MAX_U64, "the nonce")
        check_range(self.time, MAX_U64, "the time")


@dataclass(frozen=True, slots=True)
class LegAccepted:
    """Proxy, on all channels of the association: this leg is live now. One that the client did not open is an alarm.

    Attributes:
        session: Of the leg.
        generation: Of the leg, at least 1.
        leg_number: Of the leg.
    """

    session: SessionId
    generation: int
    leg_number: int

    def __post_init__(self) -> None:
        check_range(self.generation, MAX_GENERATION, "the generation")
        check_range(self.leg_number, MAX_U64, "the leg number")


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Proxy: a session is over. Bytes that the live leg still holds are the program's all the same.

    Attributes:
        session: Which.
        reason: Why. A number that is not known reads as UNSPECIFIED.
    """

    session: SessionId
    reason: EndReason


@dataclass(frozen=True, slots=True)
class ParkedLeg:
    """A session whose leg is gone.

    Attributes:
        session: Which.
        generation: Of the leg that is gone. A PARK that comes late must not park a newer one.
        received: R, as in `msocks.protocol.leg.Reconnect`.
    """

    session: SessionId
    generation: int
    received: int

    def __post_init__(self) -> None:
        check_range(self.generation, MAX_GENERATION, "the generation")
        check_range(self.received, MAX_OFFSET, "R")


def _check_listed(count: int, least: int = 0) -> None:
    if not least <= count <= MAX_LISTED_SESSIONS:
        raise ValueError(f"a message lists {least} to {MAX_LISTED_SESSIONS} sessions, not {count}")


@dataclass(frozen=True, slots=True)
class Park:
    """Client: these legs are gone; hold what the server sends until they are replaced.

    Attributes:
        legs: 1 to 512.
    """

    legs: tuple[ParkedLeg, ...]

    def __post_init__(self) -> None:
        _check_listed(len(self.legs), least=1)


@dataclass(frozen=True, slots=True)
class Parked:
    """Proxy: the answer to one PARK, or unasked, that the proxy has lost the leg of a session.

    A session of the PARK that is missing here was not parked: it is unknown, or a newer leg carries it.

    Attributes:
        sessions: 0 to 512 pairs of session and generation.
    """

    sessions: tuple[tuple[SessionId, int], ...]

    def __post_init__(self) -> None:
        _check_listed(len(self.sessions))
        for _, generation in self.sessions:
            check_range(generation, MAX_GENERATION, "the generation")


@dataclass(frozen=True, slots=True)
class ReceivedStream:
    """How much of a session's stream one end has: the client of the downstream, the proxy of the upstream.

    Attributes:
        session: Which.
        generation: Of the live leg, as the sender knows it.
        received: R of the client, U of the proxy, as in `msocks.protocol.leg`.
        at_end: Whether the FIN behind that has come too.
        middlebox: Client: something on the live leg's link ACKs in its place; see `Connect`.
    """

    session: SessionId
    generation: int
    received: int
    at_end: bool = False
    middlebox: bool = False

    def __post_init__(self) -> None:
        check_range(self.generation, MAX_GENERATION, "the generation")
        check_range(self.received, MAX_OFFSET, "the received bytes")


@dataclass(frozen=True, slots=True)
class Received:
    """Client: what has arrived on legs whose ACKs are a middlebox's; proxy: the answer, for the sessions that it has.

    Attributes:
        streams: 1 to 512; in an answer 0 to 512.
    """

    streams: tuple[ReceivedStream, ...]

    def __post_init__(self) -> None:
        _check_listed(len(self.streams))


@dataclass(frozen=True, slots=True)
class Drain:
    """Proxy: this proxy will go; open new sessions, and reconnect the others, at another one with the same key.

    Attributes:
        endpoint: The other proxy.
    """

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Either side: the last message; the channel closes on purpose. Sessions and association are not touched by it."""


ControlMessage: TypeAlias = (
    Hello
    | Welcome
    | Refused
    | Ping
    | Pong
    | LegAccepted
    | SessionEnded
    | Park
    | Parked
    | Received
    | Drain
    | Goodbye
    | Listen
    | Listening
    | Incoming
    | Unlisten
)
