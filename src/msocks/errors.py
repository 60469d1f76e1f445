"""The errors a user of MSOCKS can meet.

Every error says what happened and, where somebody can do something about it, what to do next. All derive from
`MsocksError`; those that a program without MSOCKS would meet as an `OSError` (a refused connection, a reset, a
network that is gone) derive from the fitting `OSError` class as well, so that existing ``except`` clauses go on
working.
"""

from __future__ import annotations

import errno
from enum import IntEnum, StrEnum
from typing import Self


class MsocksError(Exception):
    """Base of all errors of this package.

    Attributes:
        what: What happened, one clause without a full stop.
        remedy: What to do next; empty where nobody can do anything.
    """

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class ConfigurationError(MsocksError, ValueError):
    """A setting, a file or an argument cannot be used as it stands."""


class AddressError(ConfigurationError):
    """A text or a byte string is not a host, a port or an endpoint."""


class AccessLinkError(ConfigurationError):
    """A text is not an access link. The message never repeats the secret."""


class InvalidState(MsocksError, RuntimeError):
    """A call came at a time when the object cannot carry it out: a mistake of the calling program."""


class ProtocolFault(StrEnum):
    """Why bytes of a peer cannot be accepted. The values are used by the test vectors."""

    VERSION = "version"
    """A version byte is not one that this implementation speaks."""
    COMMAND = "command"
    """A command code is not defined."""
    METHOD = "method"
    """The method negotiation has no outcome that both sides accept."""
    ADDRESS = "address"
    """An address type is not defined, or an address or name is malformed."""
    FIELD = "field"
    """A field holds a value outside its range, or a reserved field is not zero."""
    LENGTH = "length"
    """A length is outside its limits, or disagrees with the bytes that are there."""
    TYPE = "type"
    """A message type is not defined where an unknown one cannot be ignored."""
    ORDER = "order"
    """A message came from the wrong side or at the wrong time."""
    SYNTAX = "syntax"
    """A text protocol's grammar is violated."""


class ProtocolError(MsocksError):
    """A peer sent bytes that the protocol does not allow.

    Attributes:
        reason: The kind of violation.
    """

    def __init__(self, reason: ProtocolFault, what: str, *, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.reason = reason


class AuthenticationError(MsocksError, PermissionError):
    """The other side did not accept who we are, or could not prove who it is."""


class PinMismatch(AuthenticationError):
    """The proxy's key is not the one that the access link pins."""

    def __init__(self, expected: bytes, seen: bytes) -> None:
        super().__init__(
            f"the proxy's key has the fingerprint {seen.hex()}, the access link says {expected.hex()}",
            remedy="somebody may be intercepting the connection; if the proxy's key was replaced on purpose, "
            "ask its operator for a new access link",
        )
        self.expected = expected
        self.seen = seen


class EndReason(IntEnum):
    """Why a session is over. The numbers are those of the wire."""

    UNSPECIFIED = 0
    """The peer gave a reason that this version does not know."""
    SERVER_RESET = 1
    """The server reset the connection."""
    CLOSED = 2
    """Both directions ended with a FIN and were delivered."""
    EXPIRED = 3
    """No mobile leg came within the proxy's detach grace."""
    CLIENT_CLOSED = 4
    """The client ended it with an authenticated CLOSE."""
    REFUSED = 5
    """The proxy refused the destination, or could not connect to it."""
    UNKNOWN = 6
    """The proxy knows no such session."""
    BYTES_LOST = 7
    """Bytes that were acknowledged to one side cannot be had any more from the other."""
    USER_REMOVED = 8
    """The operator removed the user."""
    LIMIT = 9
    """A limit of the user or of the proxy was exceeded."""
    SERVER_TIMED_OUT = 10
    """The server stopped acknowledging and TCP gave up."""
    PROXY_FAILED = 11
    """The proxy met a fault of its own."""


_END_TEXT: dict[EndReason, tuple[str, str]] = {
    EndReason.UNSPECIFIED: ("the proxy ended the session for a reason unknown to this version", "update msocks"),
    EndReason.SERVER_RESET: ("the server reset the connection", ""),
    EndReason.CLOSED: ("the connection was closed by both sides", ""),
    EndReason.EXPIRED: (
        "the proxy gave the session up because it was without a network for longer than the proxy's detach grace",
        "open a new connection; the operator can raise the grace",
    ),
    EndReason.CLIENT_CLOSED: ("the session was closed from this side", ""),
    EndReason.REFUSED: ("the proxy refused the connection", "see the reply code"),
    EndReason.UNKNOWN: (
        "the proxy does not know the session",
        "it was restarted without its store, or the session ended long ago; open a new connection",
    ),
    EndReason.BYTES_LOST: (
        "bytes were lost with a connection that had acknowledged them, so the session cannot go on without a gap",
        "a middlebox on the old path answers for this host (a performance-enhancing proxy); avoid that link",
    ),
    EndReason.USER_REMOVED: ("the proxy's operator removed this user", "ask the operator for a new access link"),
    EndReason.LIMIT: ("a limit of the proxy was exceeded", "close other sessions, or ask the operator"),
    EndReason.SERVER_TIMED_OUT: ("the server stopped answering and the connection timed out", ""),
    EndReason.PROXY_FAILED: ("the proxy had to give up the session", "the proxy's log says why"),
}


class SessionEnded(MsocksError, ConnectionError):
    """A session is over and cannot be continued.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: EndReason) -> None:
        what, remedy = _END_TEXT[reason]
        super().__init__(what, remedy=remedy)
        self.reason = reason

    @staticmethod
    def because(reason: EndReason) -> SessionEnded:
        """The error for `reason`: a `SessionReset` where a plain TCP connection would have met a reset."""
        return SessionReset(reason) if reason is EndReason.SERVER_RESET else SessionEnded(reason)


class SessionReset(SessionEnded, ConnectionResetError):
    """The server reset the connection. Told only after an authenticated word of the proxy."""


_REPLY_TEXT: dict[int, tuple[str, str, int | None]] = {
    0x01: ("the proxy failed to connect", "the proxy's log says why", None),
    0x02: ("the proxy's rules do not allow the destination", "its operator can allow it", errno.EACCES),
    0x03: ("the proxy has no route to the destination's network", "", errno.ENETUNREACH),
    0x04: (
        "the destination cannot be reached from the proxy, or its name does not resolve there",
        "check the name",
        errno.EHOSTUNREACH,
    ),
    0x05: ("the destination refused the connection", "check that a server listens on that port", errno.ECONNREFUSED),
    0x06: ("the destination did not answer in time", "", errno.ETIMEDOUT),
    0x07: ("the proxy does not support the command", "use CONNECT", errno.EOPNOTSUPP),
    0x08: ("the proxy does not support the address type", "use IPv4, IPv6 or a name", errno.EAFNOSUPPORT),
}


class DestinationError(MsocksError, OSError):
    """The proxy could not connect to the destination.

    Attributes:
        reply_code: The SOCKS reply code (RFC 1928 section 6), 1 to 255.
        destination: The destination as printed, or empty.
        errno: The error number that a direct connect() would have given, where there is one.
    """

    def __init__(self, reply_code: int, destination: str = "") -> None:
        what, remedy, number = _REPLY_TEXT.get(
            reply_code, (f"the proxy answered with the undefined reply code {reply_code:#04x}", "", None)
        )
        super().__init__(f"{destination}: {what}" if destination else what, remedy=remedy)
        self.reply_code = reply_code
        self.destination = destination
        self.errno = number

    @classmethod
    def from_reply(cls, reply_code: int, destination: str = "") -> DestinationError:
        """The error for a reply code, of the class that a direct connect() would have raised."""
        match reply_code:
            case 0x05:
                return DestinationRefused(reply_code, destination)
            case 0x06:
                return DestinationTimedOut(reply_code, destination)
            case _:
                return DestinationError(reply_code, destination)


class DestinationRefused(DestinationError, ConnectionRefusedError):
    """The destination refused the connection."""


class DestinationTimedOut(DestinationError, TimeoutError):
    """The destination did not answer in time."""


class ListenError(MsocksError, OSError):
    """The proxy gives no port to listen at, or has taken it back.

    Attributes:
        errno: As a bind() of this host's would have given: EACCES, EADDRINUSE, or ETIMEDOUT where nobody
            has connected in time; None for limits and all else.
    """

    def __init__(self, what: str, *, remedy: str = "", number: int | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.errno = number


class ControlUnavailable(MsocksError, ConnectionError):
    """No control channel to the proxy can be had, so no leg can be authenticated."""


class ControlClosed(ControlUnavailable):
    """The proxy's end of a control channel has closed, as it does when the proxy stops or crashes."""


class AgentUnavailable(MsocksError, ConnectionError):
    """The agent's control socket cannot be reached."""


class LinkUnavailable(MsocksError, ConnectionError):
    """A link does not exist, is down, or has no route to the proxy.

    Attributes:
        link: The link's name.
    """

    def __init__(self, link: str, why: str) -> None:
        super().__init__(f"the link {link} cannot be used: {why}", remedy="`msocks links` shows the links")
        self.link = link

    @classmethod
    def unknown(cls, link: str) -> Self:
        """The error for a name that no link has."""
        return cls(link, "there is no such network interface")


class LinkCaptive(LinkUnavailable):
    """Something on a link answers in the proxy's place."""

    REMEDY = "open any web page over this link, and log in there; flows go on by themselves"

    def __init__(self, link: str, why: str) -> None:
        super().__init__(link, f"something on it answers in the proxy's place (captive portal?): {why}")
        self.remedy = self.REMEDY
