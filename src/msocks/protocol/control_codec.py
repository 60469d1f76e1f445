"""The bytes of the control channel's messages: u16 length of the body, u8 type, body.

A receiver ignores types that it does not know, and bytes after the fields of a body that it knows, so that later
versions can add both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msocks.errors import ConfigurationError, EndReason, ProtocolError, ProtocolFault
from msocks.protocol.control import (
    KEY_BYTES,
    MAX_LABEL_BYTES,
    MAX_LISTED_SESSIONS,
    MAX_REASON_TEXT_BYTES,
    SECRET_BYTES,
    ControlMessage,
    Drain,
    Goodbye,
    Hello,
    LegAccepted,
    MessageType,
    Park,
    Parked,
    ParkedLeg,
    Ping,
    Pong,
    Received,
    ReceivedStream,
    RefusalCode,
    Refused,
    SessionEnded,
    Welcome,
)
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
from msocks.protocol.inbound import MAX_LISTEN_TEXT_BYTES, Incoming, Listen, Listening, ListenStatus, Unlisten
from msocks.values.endpoint import Endpoint
from msocks.values.ids import ID_BYTES, AssociationId, SessionId

HEADER_BYTES = 3
MAX_BODY_BYTES = 16384

_AT_END, _MIDDLEBOX = 0x01, 0x02
_ONCE = 0x01
_MESSAGE_TYPES = frozenset(MessageType)
_END_REASONS = frozenset(EndReason)
_REFUSAL_CODES = frozenset(RefusalCode)
_LISTEN_STATUSES = frozenset(ListenStatus)


def _u8(value: int) -> bytes:
    return value.to_bytes(1, "big")


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _text8(text: str) -> bytes:
    data = text.encode()
    return _u8(len(data)) + data


def encode_message(message: ControlMessage) -> bytes:
    """The frame of a message."""
    kind, body = _encode_body(message)
    return _u16(len(body)) + _u8(kind) + body


def _encode_body(message: ControlMessage) -> tuple[MessageType, bytes]:
    match message:
        case Hello():
            return MessageType.HELLO, b"".join(
                (
                    _u8(message.version),
                    message.association.value,
                    message.secret,
                    _u16(message.smallest_mtu),
                    _text8(message.user),
                    _text8(message.link),
                    _text8(message.agent_name),
                    _text8(message.agent_version),
                )
            )
        case Welcome():
            return MessageType.WELCOME, b"".join(
                (
                    _u8(message.version),
                    message.association.value,
                    message.key_up,
                    message.key_down,
                    _u64(message.proxy_ms),
                    _u32(message.detach_grace_s),
                    _u32(message.max_sessions),
                    encode_fixed_address(message.observed),
                    _text8(message.server_version),
                )
            )
        case Refused(code, text):
            data = text.encode()
            return MessageType.REFUSED, _u8(code) + _u16(len(data)) + data
        case Ping(nonce, time):
            return MessageType.PING, _u64(nonce) + _u64(time)
        case Pong(nonce, time):
            return MessageType.PONG, _u64(nonce) + _u64(time)
        case LegAccepted(session, generation, leg_number):
            return MessageType.LEG_ACCEPTED, session.value + _u32(generation) + _u64(leg_number)
        case SessionEnded(session, reason):
            return MessageType.SESSION_ENDED, session.value + _u8(reason)
        case Park(legs):
            listed = (leg.session.value + _u32(leg.generation) + _u64(leg.received) for leg in legs)
            return MessageType.PARK, _u16(len(legs)) + b"".join(listed)
        case Parked(sessions):
            listed = (session.value + _u32(generation) for session, generation in sessions)
            return MessageType.PARKED, _u16(len(sessions)) + b"".join(listed)
        case Received(streams):
            listed = (_encode_stream(stream) for stream in streams)
            return MessageType.RECEIVED, _u16(len(streams)) + b"".join(listed)
        case Drain(endpoint):
            return MessageType.DRAIN, encode_fixed_host(endpoint)
        case Goodbye():
            return MessageType.GOODBYE, b""
        case Listen(number, port, once, peer):
            flags = _ONCE if once else 0
            return MessageType.LISTEN, _u32(number) + _u8(flags) + _u16(port) + encode_fixed_host(peer)
        case Listening(number, status, bound, text):
            data = text.encode()
            head = _u32(number) + _u8(status) + encode_fixed_address(bound)
            return MessageType.LISTENING, head + _u16(len(data)) + data
        case Incoming(number, session, peer, bound):
            ends = encode_fixed_address(peer) + encode_fixed_address(bound)
            return MessageType.INCOMING, _u32(number) + session.value + ends
        case Unlisten(number):
            return MessageType.UNLISTEN, _u32(number)


def _encode_stream(stream: ReceivedStream) -> bytes:
    flags = (_AT_END if stream.at_end else 0) | (_MIDDLEBOX if stream.middlebox else 0)
    return stream.session.value + _u32(stream.generation) + _u64(stream.received) + _u8(flags)


class _Body:
    """Reads the fields of one body in order."""

    __slots__ = ("_at", "_data", "_name")

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        require(len(taken) == size, f"a {self._name} is too short for its fields", ProtocolFault.LENGTH)
        self._at += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self, length_size: int = 1, maximum: int = MAX_LABEL_BYTES) -> str:
        size = self.number(length_size)
        require(size <= maximum, f"a text of a {self._name} has {size} bytes", ProtocolFault.LENGTH)
        try:
            text = self.take(size).decode()
        except UnicodeDecodeError:
            raise ProtocolError(ProtocolFault.FIELD, f"a text of a {self._name} is not UTF-8") from None
        require(text.isprintable(), f"a text of a {self._name} has unprintable characters")
        return text

    def _id(self) -> bytes:
        value = self.take(ID_BYTES)
        require(any(value), f"an identifier of a {self._name} is all zero")
        return value

    def session(self) -> SessionId:
        return SessionId(self._id())

    def association(self) -> AssociationId:
        return AssociationId(self._id())

    def listener(self) -> int:
        number = self.number(4)
        require(number > 0, f"the listener of a {self._name} has the number 0")
        return number

    def address(self) -> Endpoint:
        address = decode_fixed_address(self.take(FIXED_ADDRESS_BYTES))
        if address is None:
            raise ProtocolError(ProtocolFault.FIELD, f"an address in a {self._name} is absent")
        return address


def decode_body(kind: MessageType, data: bytes) -> ControlMessage:
    """The message in a body.

    Raises:
        ProtocolError: A field is malformed, or the body is too short.
    """
    body = _Body(kind.name, data)
    match kind:
        case MessageType.HELLO:
            return _decode_hello(body)
        case MessageType.WELCOME:
            return _decode_welcome(body)
        case MessageType.REFUSED:
            code = body.number(1)
            known = RefusalCode(code) if code in _REFUSAL_CODES else RefusalCode.UNSPECIFIED
            return Refused(known, body.text(2, MAX_REASON_TEXT_BYTES))
        case MessageType.PING:
            return Ping(body.number(8), body.number(8))
        case MessageType.PONG:
            return Pong(body.number(8), body.number(8))
        case MessageType.LEG_ACCEPTED:
            return LegAccepted(body.session(), body.number(4), body.number(8))
        case MessageType.SESSION_ENDED:
            session, reason = body.session(), body.number(1)
            return SessionEnded(session, EndReason(reason) if reason in _END_REASONS else EndReason.UNSPECIFIED)
        case MessageType.PARK:
            count = body.number(2)
            require(1 <= count <= MAX_LISTED_SESSIONS, f"a PARK lists {count} sessions")
            return Park(
                tuple(
                    ParkedLeg(body.session(), body.number(4), decode_offset(body.number(8), "R")) for _ in range(count)
                )
            )
        case MessageType.PARKED:
            count = body.number(2)
            require(count <= MAX_LISTED_SESSIONS, f"a PARKED lists {count} sessions")
            return Parked(tuple((body.session(), body.number(4)) for _ in range(count)))
        case MessageType.RECEIVED:
            count = body.number(2)
            require(count <= MAX_LISTED_SESSIONS, f"a RECEIVED lists {count} sessions")
            return Received(tuple(_decode_stream(body) for _ in range(count)))
        case MessageType.DRAIN:
            return Drain(decode_fixed_host(body.take(FIXED_HOST_BYTES)))
        case MessageType.GOODBYE:
            return Goodbye()
        case MessageType.LISTEN:
            number, flags, port = body.listener(), body.number(1), body.number(2)
            return Listen(number, port, bool(flags & _ONCE), decode_fixed_host(body.take(FIXED_HOST_BYTES)))
        case MessageType.LISTENING:
            return _decode_listening(body)
        case MessageType.INCOMING:
            return Incoming(body.listener(), body.session(), body.address(), body.address())
        case MessageType.UNLISTEN:
            return Unlisten(body.listener())


def _decode_stream(body: _Body) -> ReceivedStream:
    """Flags that are not known are ignored, as what a later version says beside."""
    session, generation = body.session(), body.number(4)
    received, flags = decode_offset(body.number(8), "the received bytes"), body.number(1)
    return ReceivedStream(session, generation, received, bool(flags & _AT_END), bool(flags & _MIDDLEBOX))


def _decode_listening(body: _Body) -> Listening:
    number, code = body.listener(), body.number(1)
    status = ListenStatus(code) if code in _LISTEN_STATUSES else ListenStatus.FAILED
    bound = decode_fixed_address(body.take(FIXED_ADDRESS_BYTES))
    require(
        (bound is None) is (status is not ListenStatus.OPEN), "a LISTENING has an address, and is not open, or none"
    )
    return Listening(number, status, bound, body.text(2, MAX_LISTEN_TEXT_BYTES))


def _decode_hello(body: _Body) -> Hello:
    version, association = body.number(1), body.association()
    secret, smallest_mtu = body.take(SECRET_BYTES), body.number(2)
    try:
        return Hello(
            version=version,
            association=association,
            secret=secret,
            smallest_mtu=smallest_mtu,
            user=body.text(),
            link=body.text(),
            agent_name=body.text(),
            agent_version=body.text(),
        )
    except ConfigurationError as error:
        raise ProtocolError(ProtocolFault.FIELD, f"a HELLO is malformed: {error.what}") from None


def _decode_welcome(body: _Body) -> Welcome:
    version, association = body.number(1), body.association()
    key_up, key_down = body.take(KEY_BYTES), body.take(KEY_BYTES)
    require(key_up != key_down, "the keys in a WELCOME are equal")
    proxy_ms, detach_grace_s, max_sessions = body.number(8), body.number(4), body.number(4)
    observed = body.address()
    return Welcome(
        version=version,
        association=association,
        key_up=key_up,
        key_down=key_down,
        proxy_ms=proxy_ms,
        detach_grace_s=detach_grace_s,
        max_sessions=max_sessions,
        observed=observed,
        server_version=body.text(),
    )


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A frame whose type this version does not know.

    Attributes:
        type: The type byte.
        size: Bytes of its body, which was discarded.
    """

    type: int
    size: int


class FrameDecoder:
    """Reads messages from a byte stream. Memory: one frame (16,387 bytes) and what one call brought."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> Iterator[ControlMessage | UnknownMessage]:
        """Take bytes from the connection, at once; give the messages that they complete, one at each step.

        Raises (at the step where the messages before it have been given):
            ProtocolError: A frame is malformed. The decoder must not be used any more.
        """
        self._buffer += data
        return self._frames()

    def _frames(self) -> Iterator[ControlMessage | UnknownMessage]:
        buffer = self._buffer
        while len(buffer) >= 2:
            size = int.from_bytes(buffer[:2], "big")
            require(size <= MAX_BODY_BYTES, f"a frame announces {size} bytes", ProtocolFault.LENGTH)
            if len(buffer) < HEADER_BYTES + size:
                return
            kind = buffer[2]
            body = bytes(buffer[HEADER_BYTES : HEADER_BYTES + size])
            del buffer[: HEADER_BYTES + size]
            yield decode_body(MessageType(kind), body) if kind in _MESSAGE_TYPES else UnknownMessage(kind, size)
