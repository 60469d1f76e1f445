"""The client's side of a SOCKS5 connection as a state machine (RFC 1928, RFC 1929)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from msocks.errors import AuthenticationError, DestinationError, InvalidState, ProtocolError, ProtocolFault
from msocks.protocol.socks5_wire import (
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
class Connected:
    """The proxy has connected; what follows is the application's.

    Attributes:
        bound: The proxy's address toward the destination, as the proxy tells it.
    """

    bound: Endpoint


class _State(Enum):
    METHOD = auto()
    PASSWORD = auto()
    REPLY = auto()
    CONNECTED = auto()
    FAILED = auto()


class Socks5Client:
    """One CONNECT through a SOCKS5 proxy, seen from the client.

    Send what `data_to_send` gives, feed what arrives to `receive`, until it returns `Connected`.

    Memory: one message (at most 262 bytes) and what the call that completed it brought.

    Attributes:
        wants_data: Whether `receive` may be called: until the connection is there or has failed.
    """

    __slots__ = ("_buffer", "_credentials", "_destination", "_outgoing", "_state")

    def __init__(self, destination: Endpoint, credentials: tuple[bytes, bytes] | None = None) -> None:
        """Begin a connection.

        Args:
            destination: The server.
            credentials: Username and password, 1 to 255 bytes each; the method "none" is offered besides. None: only
                "none" is offered.

        Raises:
            ValueError: A credential is empty or too long.
        """
        if credentials is not None and not all(1 <= len(each) <= 255 for each in credentials):
            raise ValueError("username and password have 1 to 255 bytes")
        self._destination = destination
        self._credentials = credentials
        self._state = _State.METHOD
        self._buffer = bytearray()
        methods = [Method.NO_AUTHENTICATION]
        if credentials is not None:
            methods.append(Method.USERNAME_PASSWORD)
        self._outgoing = bytearray((VERSION, len(methods), *methods))

    @property
    def wants_data(self) -> bool:
        return self._state in (_State.METHOD, _State.PASSWORD, _State.REPLY)

    def data_to_send(self) -> bytes:
        """The bytes to send now; empty when asked again."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> list[Connected]:
        """Take bytes from the connection; return the event with the bytes that complete it.

        Raises:
            AuthenticationError: The proxy wants another method, or rejects username and password. Close.
            DestinationError: The proxy could not connect; the error has the reply code. Close.
            ProtocolError: The proxy broke the protocol. Close.
            InvalidState: `wants_data` is false.
        """
        if not self.wants_data:
            raise InvalidState("the SOCKS connection does not want data now", remedy="look at wants_data first")
        self._buffer += data
        try:
            if self._state is _State.METHOD:
                self._read_method()
            if self._state is _State.PASSWORD:
                self._read_password()
            return self._read_reply() if self._state is _State.REPLY else []
        except Exception:
            self._state = _State.FAILED
            raise

    def take_trailing(self) -> bytes:
        """The application's bytes that came with the reply; empty when asked again.

        Raises:
            InvalidState: The connection is not there yet.
        """
        if self._state is not _State.CONNECTED:
            raise InvalidState("the SOCKS connection is not established")
        trailing = bytes(self._buffer)
        self._buffer.clear()
        return trailing

    def _check_version(self, expected: int) -> None:
        if self._buffer and self._buffer[0] != expected:
            raise ProtocolError(
                ProtocolFault.VERSION,
                f"what answers at the proxy's address sends {self._buffer[0]:#04x} where version {expected} must stand",
                remedy="check that a SOCKS5 proxy listens there",
            )

    def _request(self) -> None:
        self._outgoing += bytes((VERSION, Command.CONNECT, 0)) + encode_address(self._destination)
        self._state = _State.REPLY

    def _read_method(self) -> None:
        self._check_version(VERSION)
        if len(self._buffer) < 2:
            return
        method = self._buffer[1]
        del self._buffer[:2]
        if method == Method.NO_AUTHENTICATION:
            self._request()
        elif method == Method.USERNAME_PASSWORD and self._credentials is not None:
            username, password = self._credentials
            self._outgoing += bytes((PASSWORD_VERSION, len(username))) + username
            self._outgoing += bytes((len(password),)) + password
            self._state = _State.PASSWORD
        elif method == Method.NO_ACCEPTABLE:
            remedy = "give a username and a password" if self._credentials is None else "ask its operator"
            raise AuthenticationError("the proxy accepts none of the offered authentication methods", remedy=remedy)
        else:
            raise ProtocolError(ProtocolFault.METHOD, f"the proxy chose the method {method:#04x}, not offered")

    def _read_password(self) -> None:
        self._check_version(PASSWORD_VERSION)
        if len(self._buffer) < 2:
            return
        status = self._buffer[1]
        del self._buffer[:2]
        if status != 0:
            raise AuthenticationError("the proxy rejects the username or the password", remedy="check both")
        self._request()

    def _read_reply(self) -> list[Connected]:
        buffer = self._buffer
        self._check_version(VERSION)
        if len(buffer) > 1 and buffer[1] != ReplyCode.SUCCEEDED:
            raise DestinationError.from_reply(buffer[1], str(self._destination))
        size = address_size(buffer, 3)
        if size is None or len(buffer) < 3 + size:
            return []
        bound = decode_address(bytes(buffer[3 : 3 + size]))
        del buffer[: 3 + size]
        self._state = _State.CONNECTED
        return [Connected(bound)]
