"""Identifiers of sessions and associations: 16 random bytes each, chosen by the client."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

ID_BYTES = 16
MIN_PRINTED_DIGITS = 8

FIRST_GENERATION = 1
MAX_GENERATION = 2**32 - 1
"""A generation is an unsigned 32-bit number; 0 means "none yet"."""


@dataclass(frozen=True, slots=True)
class _RandomId:
    """Sixteen bytes, not all zero.

    Raises:
        ValueError: The value has another length or is all zero, which the wire uses for "none".
    """

    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != ID_BYTES:
            raise ValueError(f"an identifier has {ID_BYTES} bytes, not {len(self.value)}")
        if not any(self.value):
            raise ValueError("an identifier is not all zero")

    @classmethod
    def generate(cls) -> Self:
        """A fresh identifier from the operating system's random numbers."""
        while True:
            value = secrets.token_bytes(ID_BYTES)
            if any(value):
                return cls(value)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Read 32 hexadecimal digits.

        Raises:
            ValueError: The text is something else.
        """
        if len(text) != 2 * ID_BYTES:
            raise ValueError(f"an identifier has {2 * ID_BYTES} hexadecimal digits, not {len(text)}")
        return cls(bytes.fromhex(text))

    def hex(self) -> str:
        """All 32 hexadecimal digits."""
        return self.value.hex()

    @property
    def short(self) -> str:
        """The first eight hexadecimal digits, for logs. See `printed_forms` where ambiguity would harm."""
        return self.value.hex()[:MIN_PRINTED_DIGITS]

    def __str__(self) -> str:
        return self.short

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"


@dataclass(frozen=True, slots=True, repr=False)
class SessionId(_RandomId):
    """Names a session for all its life, whatever legs carry it."""

    __str__ = _RandomId.__str__


@dataclass(frozen=True, slots=True, repr=False)
class AssociationId(_RandomId):
    """Names the keys that a client and a proxy share; common to the control channels of all links."""

    __str__ = _RandomId.__str__


def printed_forms(ids: Iterable[SessionId]) -> dict[SessionId, str]:
    """The shortest form of each identifier that names it alone among `ids`, at least eight digits."""
    ordered = sorted(set(ids), key=lambda each: each.value)
    forms: dict[SessionId, str] = {}
    texts = [each.hex() for each in ordered]
    for index, (each, text) in enumerate(zip(ordered, texts, strict=True)):
        digits = MIN_PRINTED_DIGITS
        for neighbour in (*texts[max(index - 1, 0) : index], *texts[index + 1 : index + 2]):
            while text[:digits] == neighbour[:digits]:
                digits += 1
        forms[each] = text[:digits]
    return forms


def matching(prefix: str, ids: Iterable[SessionId]) -> list[SessionId]:
    """The identifiers whose hexadecimal form begins with `prefix` (any case); none for an empty prefix."""
    wanted = prefix.lower()
    return [each for each in ids if wanted and each.hex().startswith(wanted)]
