"""The bytes of an MSOCKS leg: greeting, request and reply, their MACs, and decoders that never read too far.

A request is the greeting ``05 01 8D``, a header of 56 bytes, a body whose size the command fixes, and 32 bytes of
HMAC-SHA-256 over all before it. The reply is the method selection ``05 8D``, 72 bytes and 32 bytes of HMAC-SHA-256 over
the request's MAC and all of the reply before it. Application bytes follow without framing.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field

from msocks.errors import InvalidState, ProtocolError, ProtocolFault
from msocks.protocol.fields import (
    FIXED_ADDRESS_BYTES,
    FIXED_HOST_BYTES,
    decode_fixed_address,
    decode_fixed_host,
    decode_offset,
    encode_fixed_address,
    encode_fixed_host,
    require,
)
from msocks.protocol.greeting import LEG_GREETING
from msocks.protocol.leg import (
    LEG_VERSION,
    UNVERIFIABLE_STATUSES,
    Bind,
    Close,
    CloseMode,
    Connect,
    DatapathKind,
    DatapathReason,
    LegCommand,
    LegReply,
    LegRequest,
    LegStatus,
    Query,
    ReceivedReply,
    Reconnect,
)
from msocks.protocol.socks5_wire import VERSION, Method
from msocks.values.ids import FIRST_GENERATION, AssociationId, SessionId

KEY_BYTES = 32
MAC_BYTES = 32

# version, command, flags, generation, association, leg number, expiry, session
_HEADER = struct.Struct(">BBHI16sQQ16s")
_RECONNECT = struct.Struct(">QQQQ")
_CLOSE = struct.Struct(">B7xQ")
# version, status, SOCKS reply, flags, datapath, its reason, 2 reserved, generation, bound, D, U, FINs, clock
_REPLY = struct.Struct(f">BBBBBB2xI{FIXED_ADDRESS_BYTES}sQQQQQ")

DOWN_FIN = 0x01
"""Flag: the field down_fin_at holds an offset; without the flag it is zero."""
UP_FIN = 0x02
"""Flag: the field up_fin_at holds an offset; without the flag it is zero."""

_BODY_BYTES = {
    LegCommand.CONNECT: FIXED_HOST_BYTES,
    LegCommand.BIND: FIXED_HOST_BYTES,
    LegCommand.RECONNECT: _RECONNECT.size,
    LegCommand.QUERY: 0,
    LegCommand.CLOSE: _CLOSE.size,
}
REQUEST_BYTES = {
    command: len(LEG_GREETING) + _HEADER.size + body + MAC_BYTES for command, body in _BODY_BYTES.items()
}
"""Size of a whole request, greeting and MAC included."""
SHORTEST_REQUEST_BYTES = min(REQUEST_BYTES.values())

METHOD_SELECTED = bytes((VERSION, Method.MSOCKS_LEG))
METHOD_REFUSED = bytes((VERSION, Method.NO_ACCEPTABLE))
REPLY_BYTES = len(METHOD_SELECTED) + _REPLY.size + MAC_BYTES
"""Size of a whole reply, method selection and MAC included."""

_NO_MAC = bytes(MAC_BYTES)

_COMMANDS = frozenset(LegCommand)
_CLOSE_MODES = frozenset(CloseMode)
_STATUSES = frozenset(LegStatus)
_DATAPATHS = frozenset(DatapathKind)
_DATAPATH_REASONS = frozenset(DatapathReason)


def _mac(key: bytes, *parts: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return hmac.digest(key, b"".join(parts), "sha256")


def _pack_fins(down_fin_at: int | None, up_fin_at: int | None) -> tuple[int, int, int]:
    flags = (DOWN_FIN if down_fin_at is not None else 0) | (UP_FIN if up_fin_at is not None else 0)
    return flags, down_fin_at or 0, up_fin_at or 0


def _unpack_fin(flags: int, flag: int, offset: int, name: str) -> int | None:
    if flags & flag:
        return decode_offset(offset, name)
    require(offset == 0, f"{name} is set without its flag")
    return None


# --- requests -------------------------------------------------------------------------------------------------------


def encode_request(request: LegRequest, key_up: bytes) -> bytes:
    """Greeting, request and MAC: what a client writes first on a leg, in one piece.

    Args:
        request: One of `Connect`, `Bind`, `Reconnect`, `Query`, `Close`.
        key_up: The association's client-to-proxy key, 32 bytes.
    """
    flags = 0
    match request:
        case Connect(destination=destination):
            command, body = LegCommand.CONNECT, encode_fixed_host(destination)
        case Bind(destination=destination):
            command, body = LegCommand.BIND, encode_fixed_host(destination)
        case Reconnect():
            flags, down_fin_at, up_fin_at = _pack_fins(request.down_fin_at, request.up_fin_at)
            command = LegCommand.RECONNECT
            body = _RECONNECT.pack(request.received, request.upstream_from, down_fin_at, up_fin_at)
        case Query():
            command, body = LegCommand.QUERY, b""
        case Close():
            flags, _, up_fin_at = _pack_fins(None, request.up_fin_at)
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
    return unsigned + _mac(key_up, unsigned)


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
        return hmac.compare_digest(self.mac, _mac(key_up, self.signed))


class LegRequestDecoder:
    """Reads one request, greeting included, from a byte stream.

    `bytes_needed` never exceeds what the request still lacks, so a caller that reads no more than that leaves the
    application's bytes in its socket. A caller that reads more gets the rest from `take_trailing`. Memory: one request
    and what the completing call brought.
    """

    __slots__ = ("_buffer", "_done")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._done = False

    @property
    def bytes_needed(self) -> int:
        """How many bytes the request lacks at the least; 0 once it is complete."""
        return 0 if self._done else self._size() - len(self._buffer)

    def _size(self) -> int:
        at = len(LEG_GREETING) + 1
        if len(self._buffer) <= at:
            return SHORTEST_REQUEST_BYTES
        return REQUEST_BYTES[LegCommand(self._buffer[at])]

    def _check_start(self) -> None:
        start = bytes(self._buffer[: len(LEG_GREETING) + 2])
        greeting, rest = start[: len(LEG_GREETING)], start[len(LEG_GREETING) :]
        require(LEG_GREETING.startswith(greeting), "the greeting is not that of a leg", ProtocolFault.METHOD)
        if rest:
            require(rest[0] == LEG_VERSION, f"the leg version {rest[0]} is not spoken here", ProtocolFault.VERSION)
        if len(rest) > 1 and rest[1] not in _COMMANDS:
            raise ProtocolError(ProtocolFault.COMMAND, f"the leg command {rest[1]:#04x} is not defined")

    def receive(self, data: bytes) -> SignedRequest | None:
        """Take bytes from the connection; return the request with the bytes that complete it.

        Raises:
            ProtocolError: The request is malformed. The decoder must not be used any more.
            InvalidState: The request is complete already; what comes now is the application's.
        """
        if self._done:
            raise InvalidState("the request is complete")
        self._buffer += data
        self._check_start()
        size = self._size()
        if len(self._buffer) < size:
            return None
        signed = bytes(self._buffer[: size - MAC_BYTES])
        mac = bytes(self._buffer[size - MAC_BYTES : size])
        del self._buffer[:size]
        self._done = True
        return SignedRequest(_decode_request(signed), signed, mac)

    def take_trailing(self) -> bytes:
        """The application's bytes that came with the request; empty when asked again."""
        if not self._done:
            raise InvalidState("the request is not complete")
        trailing = bytes(self._buffer)
        self._buffer.clear()
        return trailing


def _decode_request(signed: bytes) -> LegRequest:
    start = len(LEG_GREETING)
    _, code, flags, generation, association, number, expires_ms, session = _HEADER.unpack_from(signed, start)
    body = signed[start + _HEADER.size :]
    command = LegCommand(code)
    allowed = {LegCommand.RECONNECT: DOWN_FIN | UP_FIN, LegCommand.CLOSE: UP_FIN}.get(command, 0)
    require(flags & ~allowed == 0, f"the flags {flags:#06x} are not defined for {command.name}")
    require(any(association), "the association id is all zero")
    require(any(session), "the session id is all zero")
    if command in (LegCommand.CONNECT, LegCommand.BIND, LegCommand.RECONNECT):
        require(generation >= FIRST_GENERATION, "the generation of a leg is zero")
    association_id, session_id = AssociationId(association), SessionId(session)
    match command:
        case LegCommand.CONNECT | LegCommand.BIND:
            kind = Connect if command is LegCommand.CONNECT else Bind
            return kind(
                association=association_id,
                leg_number=number,
                expires_ms=expires_ms,
                session=session_id,
                generation=generation,
                destination=decode_fixed_host(body),
            )
        case LegCommand.RECONNECT:
            received, upstream_from, down_fin_at, up_fin_at = _RECONNECT.unpack(body)
            return Reconnect(
                association=association_id,
                leg_number=number,
                expires_ms=expires_ms,
                session=session_id,
                generation=generation,
                received=decode_offset(received, "R"),
                upstream_from=decode_offset(upstream_from, "A"),
                down_fin_at=_unpack_fin(flags, DOWN_FIN, down_fin_at, "down_fin_at"),
                up_fin_at=_unpack_fin(flags, UP_FIN, up_fin_at, "up_fin_at"),
            )
        case LegCommand.QUERY:
            return Query(
                association=association_id,
                leg_number=number,
                expires_ms=expires_ms,
                session=session_id,
                generation=generation,
            )
        case LegCommand.CLOSE:
            mode, up_fin_at = _CLOSE.unpack(body)
            require(not any(body[1:8]), "reserved bytes of a CLOSE are not zero")
            require(mode in _CLOSE_MODES, f"the CLOSE mode {mode} is not defined")
            require(bool(flags & UP_FIN) is (mode == CloseMode.GRACEFUL), "the CLOSE mode and its FIN flag disagree")
            return Close(
                association=association_id,
                leg_number=number,
                expires_ms=expires_ms,
                session=session_id,
                generation=generation,
                mode=CloseMode(mode),
                up_fin_at=_unpack_fin(flags, UP_FIN, up_fin_at, "up_fin_at"),
            )


# --- replies --------------------------------------------------------------------------------------------------------


def encode_reply(reply: LegReply, request_mac: bytes, key_down: bytes | None) -> bytes:
    """Method selection, reply and MAC: the proxy's only words on a leg.

    Args:
        reply: What to say.
        request_mac: The 32 bytes at the end of the request.
        key_down: The association's proxy-to-client key; None for the statuses in `UNVERIFIABLE_STATUSES`, and only for
            them: the MAC is all zero then.

    Raises:
        ValueError: Status and key do not go together, or the request's MAC has another length.
    """
    if (key_down is None) is not (reply.status in UNVERIFIABLE_STATUSES):
        raise ValueError(f"{reply.status.name} is answered {'with' if key_down is None else 'without'} a MAC")
    if len(request_mac) != MAC_BYTES:
        raise ValueError(f"a MAC has {MAC_BYTES} bytes, not {len(request_mac)}")
    flags, down_fin_at, up_fin_at = _pack_fins(reply.down_fin_at, reply.up_fin_at)
    unsigned = METHOD_SELECTED + _REPLY.pack(
        LEG_VERSION,
        reply.status,
        reply.socks_reply,
        flags,
        reply.datapath,
        reply.datapath_reason,
        reply.generation,
        encode_fixed_address(reply.bound),
        reply.down_from,
        reply.up_acked,
        down_fin_at,
        up_fin_at,
        reply.proxy_ms,
    )
    return unsigned + (_NO_MAC if key_down is None else _mac(key_down, request_mac, unsigned))


class LegReplyDecoder:
    """Reads the proxy's answer to one request from a byte stream.

    `bytes_needed` and `take_trailing` are as in `LegRequestDecoder`.
    """

    __slots__ = ("_buffer", "_done", "_key_down", "_request_mac")

    def __init__(self, request: bytes, key_down: bytes) -> None:
        """
        Args:
            request: The request as `encode_request` gave it.
            key_down: The association's proxy-to-client key, 32 bytes.
        """
        if len(key_down) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key_down)}")
        self._buffer = bytearray()
        self._done = False
        self._request_mac = request[-MAC_BYTES:]
        self._key_down = key_down

    @property
    def bytes_needed(self) -> int:
        """How many bytes the reply lacks; 0 once it is complete."""
        return 0 if self._done else REPLY_BYTES - len(self._buffer)

    def receive(self, data: bytes) -> ReceivedReply | None:
        """Take bytes from the connection; return the reply with the bytes that complete it.

        Raises:
            ProtocolError: The answer is malformed, or declines the method (reason METHOD). Nothing authenticates that,
                so it says no more of the session than a broken connection would. The decoder must not be used any more.
            InvalidState: The reply is complete already; what comes now is the application's.
        """
        if self._done:
            raise InvalidState("the reply is complete")
        self._buffer += data
        self._check_start()
        if len(self._buffer) < REPLY_BYTES:
            return None
        unsigned = bytes(self._buffer[: REPLY_BYTES - MAC_BYTES])
        mac = bytes(self._buffer[REPLY_BYTES - MAC_BYTES : REPLY_BYTES])
        del self._buffer[:REPLY_BYTES]
        self._done = True
        reply = _decode_reply(unsigned)
        verified = hmac.compare_digest(mac, _mac(self._key_down, self._request_mac, unsigned))
        return ReceivedReply(reply, verified)

    def _check_start(self) -> None:
        size = len(METHOD_SELECTED)
        selection = bytes(self._buffer[:size])
        if not METHOD_SELECTED.startswith(selection):
            what = "declines MSOCKS legs" if selection == METHOD_REFUSED else "does not speak MSOCKS"
            raise ProtocolError(
                ProtocolFault.METHOD,
                f"what answers at the proxy's address {what}",
                remedy="check the address in the access link; a captive portal may answer in the proxy's place",
            )
        if len(self._buffer) > size:
            version = self._buffer[size]
            require(version == LEG_VERSION, f"the leg version {version} is not spoken here", ProtocolFault.VERSION)

    def take_trailing(self) -> bytes:
        """The application's bytes that came with the reply; empty when asked again."""
        if not self._done:
            raise InvalidState("the reply is not complete")
        trailing = bytes(self._buffer)
        self._buffer.clear()
        return trailing


def _decode_reply(unsigned: bytes) -> LegReply:
    body = unsigned[len(METHOD_SELECTED) :]
    (
        _,
        status,
        socks_reply,
        flags,
        datapath,
        reason,
        generation,
        bound,
        down_from,
        up_acked,
        down_fin_at,
        up_fin_at,
        proxy_ms,
    ) = _REPLY.unpack(body)
    require(status in _STATUSES, f"the status {status:#04x} is not defined")
    require((status == LegStatus.REFUSED) is (socks_reply != 0), "the status and the SOCKS reply code disagree")
    require(flags & ~(DOWN_FIN | UP_FIN) == 0, f"the flags {flags:#04x} are not defined")
    require(datapath in _DATAPATHS, f"the datapath {datapath} is not defined")
    require(not any(body[6:8]), "reserved bytes of a reply are not zero")
    known = reason in _DATAPATH_REASONS
    return LegReply(
        status=LegStatus(status),
        socks_reply=socks_reply,
        generation=generation,
        down_from=decode_offset(down_from, "D"),
        up_acked=decode_offset(up_acked, "U"),
        down_fin_at=_unpack_fin(flags, DOWN_FIN, down_fin_at, "down_fin_at"),
        up_fin_at=_unpack_fin(flags, UP_FIN, up_fin_at, "up_fin_at"),
        bound=decode_fixed_address(bound),
        datapath=DatapathKind(datapath),
        datapath_reason=DatapathReason(reason) if known else DatapathReason.UNSPECIFIED,
        proxy_ms=proxy_ms,
    )
