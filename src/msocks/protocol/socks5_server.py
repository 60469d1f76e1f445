"""The server's side of a SOCKS5 connection as a state machine (RFC 1928, RFC 1929).

Feed what arrives to `Socks5Server.receive`, act on the event, answer with a method, and send what `data_to_send` gives,
also after an error. The client may send everything in one piece: what came early is kept and used when its turn
comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from msocks.errors import InvalidState, ProtocolError, ProtocolFault
from msocks.protocol.socks5_wire import (
    NO_ADDRESS,
    PASSWORD_VERSION,
    VERSION,
    Command,
    Method,
    ReplyCode,
    address_size,
    decode_address,
    encode_address,
)
from msocks.values.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class PasswordOffered:
    """The client names itself; answer with `accept_password` or `reject_password`.

    Attributes:
        username: 0 to 255 bytes as they came; RFC 1929 names no character set.
        password: 0 to 255 bytes.
    """

    username: bytes
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CommandRequested:
    """The request is complete; answer with `reply`.

    Attributes:
        command: CONNECT, BIND or UDP ASSOCIATE.
        destination: Where to, as the command means it.
    """

    command: Command
    destination: Endpoint


Socks5ServerEvent: TypeAlias = PasswordOffered | CommandRequested


class _State(Enum):
    GREETING = auto()
    PASSWORD = auto()
    PASSWORD_DECISION = auto()
    REQUEST = auto()
    REPLY = auto()
    GRANTED = auto()
    CLOSED = auto()


class Socks5Server:
    """One SOCKS5 connection, seen from the server.

    Of the methods that both sides allow, username/password is chosen before none. GSSAPI, which RFC 1928 demands of
    every implementation, is not offered, as in nearly all of them.

    Memory: one message of the negotiation (at most 513 bytes) and what the call that completed it brought.

    Attributes:
        wants_data: Whether `receive` may be called. False while an answer of the caller is due, after a refusal, and
            once the command is granted, when what arrives is the application's.
    """

    __slots__ = ("_buffer", "_outgoing", "_state", "allow_none", "allow_password")

    def __init__(self, *, allow_none: bool, allow_password: bool) -> None:
        """Begin a connection.

        Args:
            allow_none: Serve clients without authentication (method 0x00).
            allow_password: Serve clients with username and password (method 0x02).
        """
        self.allow_none = allow_none
        self.allow_password = allow_password
        self._state = _State.GREETING
        self._buffer = b""
        self._outgoing = b""

    @property
    def wants_data(self) -> bool:
        return self._state in _WANTING

    def receive(self, data: bytes) -> list[Socks5ServerEvent]:
        """Take bytes from the connection; return what they complete, at most one event.

        Raises:
            ProtocolError: The client broke the protocol, or no method suits both. Send `data_to_send` and close.
            InvalidState: `wants_data` is false.
        """
        state = self._state
        if state not in _WANTING:
            raise InvalidState("the SOCKS connection does not want data now", remedy="look at wants_data first")
        self._buffer += data
        return self._read_request() if state is _State.REQUEST else self._advance()

    def data_to_send(self) -> bytes:
        """The bytes to send now; empty when asked again."""
        data, self._outgoing = self._outgoing, b""
        return data

    def accept_password(self) -> list[Socks5ServerEvent]:
        """Let the client in. Returns the event that its early bytes complete, if they do.

        Raises:
            ProtocolError: As in `receive`.
            InvalidState: No password is waiting.
        """
        self._expect(_State.PASSWORD_DECISION)
        self._outgoing += bytes((PASSWORD_VERSION, 0))
        self._state = _State.REQUEST
        return self._advance()

    def reject_password(self) -> None:
        """Turn the client away (RFC 1929 section 2). Send `data_to_send` and close.

        Raises:
            InvalidState: No password is waiting.
        """
        self._expect(_State.PASSWORD_DECISION)
        self._outgoing += bytes((PASSWORD_VERSION, 1))
        self._state = _State.CLOSED

    def listening(self, bound: Endpoint) -> None:
        """Say the first of the two replies to BIND (RFC 1928 section 6); `reply` says the second.

        Args:
            bound: Where the peer has to connect.

        Raises:
            InvalidState: No request is waiting.
        """
        self._expect(_State.REPLY)
        self._outgoing += bytes((VERSION, ReplyCode.SUCCEEDED, 0)) + encode_address(bound)

    def reply(self, code: ReplyCode, bound: Endpoint = NO_ADDRESS) -> None:
        """Answer the request. After any code but SUCCEEDED send `data_to_send` and close (within 10 s, RFC 1928).

        Args:
            code: The outcome.
            bound: The proxy's address toward the destination.

        Raises:
            InvalidState: No request is waiting.
        """
        self._expect(_State.REPLY)
        self._outgoing += bytes((VERSION, code, 0)) + encode_address(bound)
        self._state = _State.GRANTED if code is ReplyCode.SUCCEEDED else _State.CLOSED

    def take_trailing(self) -> bytes:
        """The application's bytes that came with the request; empty when asked again.

        Raises:
            InvalidState: The request is not complete.
        """
        if self._state not in (_State.REPLY, _State.GRANTED):
            raise InvalidState("the SOCKS request is not complete")
        trailing, self._buffer = self._buffer, b""
        return trailing

    def _expect(self, state: _State) -> None:
        if self._state is not state:
            raise InvalidState(f"the SOCKS connection is in state {self._state.name}, not {state.name}")

    def _fail(self, reason: ProtocolFault, what: str, answer: bytes) -> ProtocolError:
        self._outgoing += answer
        self._state = _State.CLOSED
        return ProtocolError(reason, what)

    def _take(self, size: int) -> bytes:
        buffer = self._buffer
        self._buffer = buffer[size:]
        return buffer[:size]

    def _advance(self) -> list[Socks5ServerEvent]:
        if self._state is _State.GREETING:
            self._read_greeting()
        if self._state is _State.PASSWORD:
            return self._read_password()
        if self._state is _State.REQUEST and self._buffer:
            return self._read_request()
        return []

    def _read_greeting(self) -> None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise self._fail(ProtocolFault.VERSION, f"SOCKS version {buffer[0]} is not spoken here", b"")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return
        methods = self._take(2 + buffer[1])[2:]
        if self.allow_password and Method.USERNAME_PASSWORD in methods:
            chosen, self._state = Method.USERNAME_PASSWORD, _State.PASSWORD
        elif self.allow_none and Method.NO_AUTHENTICATION in methods:
            chosen, self._state = Method.NO_AUTHENTICATION, _State.REQUEST
        else:
            offered = ", ".join(f"{method:#04x}" for method in methods[:8]) or "none"
            raise self._fail(
                ProtocolFault.METHOD,
                f"the client offers no authentication method that is allowed (it offers {offered})",
                bytes((VERSION, Method.NO_ACCEPTABLE)),
            )
        self._outgoing += _SELECTIONS[chosen]

    def _read_password(self) -> list[Socks5ServerEvent]:
        buffer = self._buffer
        if buffer and buffer[0] != PASSWORD_VERSION:
            raise self._fail(
                ProtocolFault.VERSION,
                f"version {buffer[0]} of username/password authentication is not spoken here",
                bytes((PASSWORD_VERSION, 1)),
            )
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return []
        at = 2 + buffer[1]
        if len(buffer) < at + 1 + buffer[at]:
            return []
        message = self._take(at + 1 + buffer[at])
        self._state = _State.PASSWORD_DECISION
        return [PasswordOffered(message[2:at], message[at + 1 :])]

    def _read_request(self) -> list[Socks5ServerEvent]:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise self._refuse(ProtocolFault.VERSION, f"a SOCKS request has version {buffer[0]}")
        if len(buffer) > 1 and buffer[1] not in _COMMANDS:
            raise self._refuse(
                ProtocolFault.COMMAND,
                f"the SOCKS command {buffer[1]:#04x} is not defined",
                ReplyCode.COMMAND_NOT_SUPPORTED,
            )
        try:
            size = address_size(buffer, 3)
            if size is None or len(buffer) < 3 + size:
                return []
            message = self._take(3 + size)
            destination = decode_address(message[3:])
        except ProtocolError as error:
            unknown_type = error.reason is ProtocolFault.TYPE
            code = ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED if unknown_type else ReplyCode.GENERAL_FAILURE
            raise self._refuse(error.reason, error.what, code) from None
        self._state = _State.REPLY
        return [CommandRequested(_COMMANDS[message[1]], destination)]

    def _refuse(self, reason: ProtocolFault, what: str, code: ReplyCode = ReplyCode.GENERAL_FAILURE) -> ProtocolError:
        return self._fail(reason, what, bytes((VERSION, code, 0)) + encode_address(NO_ADDRESS))


_SELECTIONS = {method: bytes((VERSION, method)) for method in Method}
_WANTING = (_State.GREETING, _State.PASSWORD, _State.REQUEST)
_COMMANDS = {int(command): command for command in Command}
