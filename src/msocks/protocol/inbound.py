"""The control channel's messages for connections that come in: a client listens at the proxy, and peers connect there.

LISTEN asks for a port, LISTENING tells what became of that, INCOMING announces a peer that has connected: a session,
which the client takes by a RECONNECT from its beginning. UNLISTEN gives the port back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from msocks.protocol.fields import MAX_U16, MAX_U32, check_range
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId

ANYBODY = Endpoint(IPv4Address(0), 0)
"""The peer of a LISTEN that whoever likes may connect to."""
MAX_LISTEN_TEXT_BYTES = 1024


class ListenStatus(IntEnum):
    """What became of a LISTEN. An unknown number reads as FAILED."""

    OPEN = 0
    NOT_ALLOWED = 1
    """The operator's rules do not allow the port, or the peer."""
    IN_USE = 2
    """Somebody else has the port: another client, or another program of the proxy's host."""
    LIMIT = 3
    """The user or the proxy has as many listeners as are allowed."""
    FAILED = 4
    """The proxy could not listen, or does not know the peer's name."""
    TIMED_OUT = 5
    """Nobody came in time (only of one that waits for one connection)."""
    CLOSED = 6
    """The proxy gave the port to a newer client of the same user."""


def _check_number(number: int) -> None:
    check_range(number, MAX_U32, "the listener's number")
    if not number:
        raise ValueError("listeners are numbered from 1")


@dataclass(frozen=True, slots=True)
class Listen:
    """Client: let peers connect to a port of the proxy. Repeated, it is answered alike, and opens nothing.

    Attributes:
        number: Names the listener within the association, 1 to 2^32-1.
        port: Which port; 0 for any that the user may have.
        once: For one connection, at any port, as BIND of RFC 1928 asks it; else for any number, until UNLISTEN.
        peer: The only host that may connect; its port counts nothing. An unspecified address stands for anybody.

    Raises:
        ValueError: A field is outside its range.
    """

    number: int
    port: int = 0
    once: bool = False
    peer: Endpoint = ANYBODY

    def __post_init__(self) -> None:
        _check_number(self.number)
        check_range(self.port, MAX_U16, "the port")


@dataclass(frozen=True, slots=True)
class Listening:
    """Proxy: the answer to LISTEN; with another status than OPEN also unasked, when a listener has ended.

    Attributes:
        number: As in LISTEN.
        status: OPEN, or why there is no such listener.
        bound: Where peers reach it, as far as the proxy knows; None with another status than OPEN.
        text: The reason for a person, at most 1024 bytes of UTF-8.
    """

    number: int
    status: ListenStatus
    bound: Endpoint | None = None
    text: str = ""

    def __post_init__(self) -> None:
        _check_number(self.number)
        if (self.bound is None) is (self.status is ListenStatus.OPEN):
            raise ValueError("a listener has an address where it is open, and else none")
        if self.bound is not None and self.bound.address is None:
            raise ValueError(f"the address {self.bound} is a name")
        if len(self.text.encode()) > MAX_LISTEN_TEXT_BYTES or not self.text.isprintable():
            raise ValueError("the text is too long, or has unprintable characters")


@dataclass(frozen=True, slots=True)
class Incoming:
    """Proxy: a peer has connected. Said on every channel, and on each new one until a leg carries the session.

    Attributes:
        number: Of the listener.
        session: Names the connection; nothing of it has been read or written.
        peer: Where it comes from.
        bound: The proxy's address to which the peer has connected.
    """

    number: int
    session: SessionId
    peer: Endpoint
    bound: Endpoint

    def __post_init__(self) -> None:
        _check_number(self.number)
        if self.peer.address is None or self.bound.address is None:
            raise ValueError("an address of a connection is a name")


@dataclass(frozen=True, slots=True)
class Unlisten:
    """Client: the listener is not needed any more. Connections of it that no leg has taken are reset.

    Attributes:
        number: As in LISTEN.
    """

    number: int

    def __post_init__(self) -> None:
        _check_number(self.number)
