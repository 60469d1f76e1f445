"""The bytes of an MSOCKS leg's request, and a decoder that never reads too far.

A request is the greeting ``05 01 8D``, a header of 56 bytes, a body whose size the command fixes, and 32 bytes of
HMAC-SHA-256 over all before it. The application's bytes follow without framing.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from typing import TypedDict

from msocks.errors import ProtocolError, ProtocolFault
from msocks.protocol.fields import (
    FIXED_HOST_BYTES,
    decode_fixed_host,
    decode_offset,
    encode_fixed_host,
    require,
)
from msocks.protocol.greeting import LEG_GREETING
from msocks.protocol.leg import (
    LEG_VERSION,
    Bind,
    Close,
    CloseMode,
    Connect,
    LegCommand,
    LegRequest,
    Query,
    Reconnect,
)
from msocks.protocol.leg_wire import (
    DOWN_FIN,
    MAC_BYTES,
    MIDDLEBOX,
    UP_FIN,
    MessageBuffer,
    leg_mac,
    pack_fins,
    unpack_fin,
)
from msocks.values.ids import FIRST_GENERATION, AssociationId, SessionId

# version, command, flags, generation, association, leg number, expiry, session
_HEADER = struct.Struct(">BBHI16sQQ16s")
_RECONNECT = struct.Struct(">QQQQII")
_CLOSE = struct.Struct(">B7xQ")

_BODY_BYTES = {
    LegCommand.CONNECT: FIXED_HOST_BYTES,
    LegCommand.BIND: FIXED_HOST_BYTES,
    LegCommand.RECONNECT: _RECONNECT.size,
    LegCommand.QUERY: 0,
    LegCommand.CLOSE: _CLOSE.size,
}
REQUEST_BYTES = {command: len(LEG_GREETING) + _HEADER.size + body + MAC_BYTES for command, body in _BODY_BYTES.items()}
"""Size of a whole request, greeting and MAC included."""
SHORTEST_REQUEST_BYTES = min(REQUEST_BYTES.values())

_VERSION_AT = len(LEG_GREETING)
_COMMAND_AT = _VERSION_AT + 1

_COMMANDS = frozenset(LegCommand)
_CLOSE_MODES = frozenset(CloseMode)
_ALLOWED_FLAGS = {
    LegCommand.CONNECT: MIDDLEBOX,
    LegCommand.RECONNECT: DOWN_FIN | UP_FIN | MIDDLEBOX,
    LegCommand.CLOSE: UP_FIN,
}


def encode_request(request: LegRequest, key_up: bytes) -> bytes:
    """Greeting, request and MAC: what a client writes first on a leg, in one piece.

    Args:
        request: One of `Connect`, `Bind`, `Reconnect`, `Query`, `Close`.
        key_up: The association's client-to-proxy key, 32 bytes.
    """
    flags = 0
    match request:
        case Connect(destination=destination):
            flags = MIDDLEBOX if request.middlebox else 0
            command, body = LegCommand.CONNECT, encode_fixed_host(destination)
        case Bind(destination=destination):
            command, body = LegCommand.BIND, encode_fixed_host(destination)
        case Reconnect():
            flags, down_fin_at, up_fin_at = pack_fins(request.down_fin_at, request.up_fin_at)
            flags |= MIDDLEBOX if request.middlebox else 0
            command = LegCommand.RECONNECT
            body = _RECONNECT.pack(
                request.received,
                request.upstream_from,
                down_fin_at,
                up_fin_at,
                request.handover_from,
                request.first_flight,
            )
        case Query():
            command, body = LegCommand.QUERY, b""
        case Close():
            flags, _, up_fin_at = pack_fins(None, request.up_fin_at)
            command, body = LegCommand.CLOSE, _CLOSE.pack(request.mode, up_fin_at)
        case _:
            raise TypeError(f"{type(request).__name__} is not a request")
    header = _HEADER.pack(
        LEG_VERSION,
        command,
        flags,
        request.generation,
        request.association.value,
        request.leg_number,
        request.expires_ms,
        request.session.value,
    )
    unsigned = LEG_GREETING + header + body
    return unsigned + leg_mac(key_up, unsigned)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as it came to the proxy: well-formed, and nothing more until `verify` says so.

    Attributes:
        request: What it says.
        signed: The bytes under the MAC: greeting, header, body.
        mac: The 32 bytes that claim to be the MAC; the reply's MAC covers them.
    """

    request: LegRequest
    signed: bytes = field(repr=False)
    mac: bytes = field(repr=False)

    def verify(self, key_up: bytes) -> bool:
        """Whether the MAC was made with `key_up`. Takes the same time for every wrong MAC."""
        return hmac.compare_digest(self.mac, leg_mac(key_up, self.signed))


class LegRequestDecoder:
    """Reads one request, greeting included, from a byte stream.

    `bytes_needed` never exceeds what the request still lacks, so a caller that reads no more than that leaves the
    application's bytes in its socket. A caller that reads more gets the rest from `take_trailing`. Memory: one request
    and what the completing call brought.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = MessageBuffer("request")

    @property
    def bytes_needed(self) -> int:
        """How many bytes the request lacks at the least; 0 once it is complete."""
        return 0 if self._buffer.complete else self._size() - len(self._buffer)

    def receive(self, data: bytes) -> SignedRequest | None:
        """Take bytes from the connection; return the request with the bytes that complete it.

        Raises:
            ProtocolError: The request is malformed. The decoder must not be used any more.
            InvalidState: The request is complete already; what comes now is the application's.
        """
        self._buffer.feed(data)
        self._check_start()
        size = self._size()
        if len(self._buffer) < size:
            return None
        message = self._buffer.take(size)
        signed = message[:-MAC_BYTES]
        return SignedRequest(_decode_request(signed), signed, message[-MAC_BYTES:])

    def take_trailing(self) -> bytes:
        """The application's bytes that came with the request; empty when asked again.

        Raises:
            InvalidState: The request is not complete.
        """
        return self._buffer.take_trailing()

    def _check_start(self) -> None:
        greeting = self._buffer[: len(LEG_GREETING)]
        require(LEG_GREETING.startswith(greeting), "the greeting is not that of a leg", ProtocolFault.METHOD)
        version = self._buffer.byte_at(_VERSION_AT)
        if version not in (None, LEG_VERSION):
            raise ProtocolError(ProtocolFault.VERSION, f"the leg version {version} is not spoken here")
        command = self._buffer.byte_at(_COMMAND_AT)
        if command is not None and command not in _COMMANDS:
            raise ProtocolError(ProtocolFault.COMMAND, f"the leg command {command:#04x} is not defined")

    def _size(self) -> int:
        command = self._buffer.byte_at(_COMMAND_AT)
        return SHORTEST_REQUEST_BYTES if command is None else REQUEST_BYTES[LegCommand(command)]


class _Common(TypedDict):
    """The fields of every request."""

    association: AssociationId
    leg_number: int
    expires_ms: int
    session: SessionId
    generation: int


def _decode_request(signed: bytes) -> LegRequest:
    start = len(LEG_GREETING)
    _, code, flags, generation, association, number, expires_ms, session = _HEADER.unpack_from(signed, start)
    body = signed[start + _HEADER.size :]
    command = LegCommand(code)
    require(flags & ~_ALLOWED_FLAGS.get(command, 0) == 0, f"the flags {flags:#06x} are not defined for {command.name}")
    require(any(association), "the association id is all zero")
    require(any(session), "the session id is all zero")
    if command in (LegCommand.CONNECT, LegCommand.BIND, LegCommand.RECONNECT):
        require(generation >= FIRST_GENERATION, "the generation of a leg is zero")
    common: _Common = {
        "association": AssociationId(association),
        "leg_number": number,
        "expires_ms": expires_ms,
        "session": SessionId(session),
        "generation": generation,
    }
    match command:
        case LegCommand.CONNECT:
            return Connect(
                **common,
                destination=decode_fixed_host(body),
                middlebox=bool(flags & MIDDLEBOX),
            )
        case LegCommand.BIND:
            return Bind(
                **common,
                destination=decode_fixed_host(body),
            )
        case LegCommand.RECONNECT:
            received, upstream_from, down_fin_at, up_fin_at, handover_from, first_flight = _RECONNECT.unpack(body)
            require(not (first_flight and handover_from), "a RECONNECT that is handed over to has a first flight")
            require(first_flight <= upstream_from, "the first flight is longer than A")
            fits = not flags & UP_FIN or upstream_from + first_flight <= up_fin_at
            require(fits or not first_flight, "the upstream ends within the first flight")
            return Reconnect(
                **common,
                received=decode_offset(received, "R"),
                upstream_from=decode_offset(upstream_from, "A"),
                down_fin_at=unpack_fin(flags, DOWN_FIN, down_fin_at, "down_fin_at"),
                up_fin_at=unpack_fin(flags, UP_FIN, up_fin_at, "up_fin_at"),
                handover_from=handover_from,
                first_flight=first_flight,
                middlebox=bool(flags & MIDDLEBOX),
            )
        case LegCommand.QUERY:
            return Query(
                **common,
            )
        case LegCommand.CLOSE:
            mode, up_fin_at = _CLOSE.unpack(body)
            require(not any(body[1:8]), "reserved bytes of a CLOSE are not zero")
            require(mode in _CLOSE_MODES, f"the CLOSE mode {mode} is not defined")
            require(bool(flags & UP_FIN) is (mode == CloseMode.GRACEFUL), "the CLOSE mode and its FIN flag disagree")
            return Close(
                **common,
                mode=CloseMode(mode),
                up_fin_at=unpack_fin(flags, UP_FIN, up_fin_at, "up_fin_at"),
            )
