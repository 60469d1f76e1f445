"""What the requests and replies of MSOCKS legs have in common: MACs, flags, FIN offsets, the collecting of bytes."""

from __future__ import annotations

import hmac

from msocks.errors import InvalidState
from msocks.protocol.fields import decode_offset, require

KEY_BYTES = 32
MAC_BYTES = 32

DOWN_FIN = 0x01
"""Flag: the field down_fin_at holds an offset; without the flag it is zero."""
UP_FIN = 0x02
"""Flag: the field up_fin_at holds an offset; without the flag it is zero."""
MIDDLEBOX = 0x04
"""Flag: something on the leg's link ends TCP; ACKs on this leg say nothing of the other end."""


def check_key(key: bytes) -> bytes:
    """Return `key`.

    Raises:
        ValueError: It has not 32 bytes.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return key


def leg_mac(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA-256 (RFC 2104) over the parts one after the other.

    Raises:
        ValueError: The key has not 32 bytes.
    """
    return hmac.digest(check_key(key), b"".join(parts), "sha256")


def pack_fins(down_fin_at: int | None, up_fin_at: int | None) -> tuple[int, int, int]:
    """Flags and the two fields for offsets that may be absent."""
    flags = (DOWN_FIN if down_fin_at is not None else 0) | (UP_FIN if up_fin_at is not None else 0)
    return flags, down_fin_at or 0, up_fin_at or 0


def unpack_fin(flags: int, flag: int, offset: int, name: str) -> int | None:
    """The offset in a received field; None where its flag is not set.

    Raises:
        ProtocolError: The field is above 2^63-1, or is not zero although its flag is not set.
    """
    if flags & flag:
        return decode_offset(offset, name)
    require(offset == 0, f"{name} is set without its flag")
    return None


class MessageBuffer:
    """Collects the one message that opens a direction of a leg; what is behind it is the application's."""

    __slots__ = ("_buffer", "_complete", "_name")

    def __init__(self, name: str) -> None:
        """Begin empty; `name` is what errors call the message."""
        self._buffer = bytearray()
        self._complete = False
        self._name = name

    @property
    def complete(self) -> bool:
        """Whether the message was taken."""
        return self._complete

    def __len__(self) -> int:
        return len(self._buffer)

    def __getitem__(self, index: slice) -> bytes:
        return bytes(self._buffer[index])

    def byte_at(self, index: int) -> int | None:
        """The byte at `index`; None while it has not come."""
        return self._buffer[index] if index < len(self._buffer) else None

    def feed(self, data: bytes) -> None:
        """Append what arrived.

        Raises:
            InvalidState: The message is complete already.
        """
        if self._complete:
            raise InvalidState(f"the {self._name} is complete", remedy="what comes now is the application's")
        self._buffer += data

    def take(self, size: int) -> bytes:
        """Take the message, which is `size` bytes long and complete with that."""
        message = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._complete = True
        return message

    def take_trailing(self) -> bytes:
        """The application's bytes that came with the message; empty when asked again.

        Raises:
            InvalidState: The message is not complete.
        """
        if not self._complete:
            raise InvalidState(f"the {self._name} is not complete")
        trailing = bytes(self._buffer)
        self._buffer.clear()
        return trailing
