"""One control channel as a state machine: which message may come when, and from whom.

The client speaks first: HELLO, once. The proxy's first word is WELCOME or REFUSED. Then both speak as they like, each
within its own messages, until REFUSED or GOODBYE, after which the sender is silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from msocks.errors import InvalidState, ProtocolError, ProtocolFault
from msocks.protocol.control import (
    ControlMessage,
    Drain,
    Goodbye,
    Hello,
    LegAccepted,
    Park,
    Parked,
    Ping,
    Pong,
    Received,
    Refused,
    SessionEnded,
    Welcome,
)
from msocks.protocol.control_codec import FrameDecoder, UnknownMessage, encode_message
from msocks.protocol.inbound import Incoming, Listen, Listening, Unlisten


class Side(Enum):
    """An end of a control channel."""

    CLIENT = "client"
    PROXY = "proxy"


_OPENING: dict[Side, tuple[type, ...]] = {Side.CLIENT: (Hello,), Side.PROXY: (Welcome, Refused)}
_AFTERWARDS: dict[Side, tuple[type, ...]] = {
    Side.CLIENT: (Ping, Pong, Park, Received, Listen, Unlisten, Goodbye),
    Side.PROXY: (
        Refused,
        Ping,
        Pong,
        LegAccepted,
        SessionEnded,
        Parked,
        Received,
        Drain,
        Listening,
        Incoming,
        Goodbye,
    ),
}


class _Speech(Enum):
    SILENT = "has said nothing yet"
    OPEN = "may speak"
    OVER = "has said its last word"


class _Speaker:
    """What one side has said so far."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.speech = _Speech.SILENT

    def may_say(self, message: ControlMessage) -> bool:
        match self.speech:
            case _Speech.SILENT:
                return isinstance(message, _OPENING[self.side])
            case _Speech.OPEN:
                return isinstance(message, _AFTERWARDS[self.side])
            case _Speech.OVER:
                return False

    def said(self, message: ControlMessage) -> None:
        self.speech = _Speech.OVER if isinstance(message, Refused | Goodbye) else _Speech.OPEN


class ControlChannel:
    """One end of a control channel. Bytes are those inside TLS.

    A client may write on after HELLO without waiting for the answer; a proxy that refuses ignores the rest.
    """

    __slots__ = ("_decoder", "_here", "_there")

    def __init__(self, side: Side) -> None:
        """Begin a channel of which this object is the end `side`."""
        self._decoder = FrameDecoder()
        self._here = _Speaker(side)
        self._there = _Speaker(Side.PROXY if side is Side.CLIENT else Side.CLIENT)

    @property
    def is_open(self) -> bool:
        """Whether both sides have opened and neither has ended the channel."""
        return self._here.speech is _Speech.OPEN and self._there.speech is _Speech.OPEN

    def send(self, message: ControlMessage) -> bytes:
        """The bytes to write for a message.

        Raises:
            InvalidState: This side may not say this now.
        """
        name = type(message).__name__
        if self._here.side is Side.PROXY and self._there.speech is _Speech.SILENT:
            raise InvalidState(f"the proxy cannot say {name} before the client's Hello")
        if not self._here.may_say(message):
            raise InvalidState(f"the {self._here.side.value} {self._here.speech.value}: it cannot say {name}")
        self._here.said(message)
        return encode_message(message)

    def receive(self, data: bytes) -> Iterator[ControlMessage]:
        """Take bytes from the connection, at once; give the messages that they complete, one at each step.

        Messages of unknown type are skipped, except in the place of the opening message.

        Raises (at the step where the messages before it have been given):
            ProtocolError: A frame is malformed, or a message may not come now. Close the channel.
        """
        return self._in_order(self._decoder.receive(data))

    def _in_order(self, messages: Iterator[ControlMessage | UnknownMessage]) -> Iterator[ControlMessage]:
        there = self._there
        for message in messages:
            if isinstance(message, UnknownMessage):
                if there.speech is _Speech.SILENT:
                    raise ProtocolError(
                        ProtocolFault.TYPE, f"the first message has the unknown type {message.type:#04x}"
                    )
                continue
            if not there.may_say(message):
                raise ProtocolError(
                    ProtocolFault.ORDER,
                    f"the {there.side.value} {there.speech.value}: it must not say {type(message).__name__}",
                )
            there.said(message)
            yield message
