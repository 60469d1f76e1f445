"""Byte streams that can be generated and checked at any offset, so that no loss, repetition or swap goes unseen.

A stream is a sequence of 64 KiB chunks: each begins with its number as 8 bytes in network order, and goes on with
bytes drawn from the seed, which every chunk enters at another place.
"""

from __future__ import annotations

import functools
import random
from typing import NoReturn

from msocks_lab.errors import TransferError

CHUNK = 65536
_NUMBER = 8
_BODY = CHUNK - _NUMBER
_SAMPLE = 32  # bytes looked for when the stream is wrong
_SEARCHED = 64 * CHUNK  # as far in either direction
_STRIDE = 40_503  # coprime to the pool's length: the same rotation comes back after `CHUNK` chunks at the earliest


@functools.lru_cache(maxsize=64)
def _pool(seed: int) -> bytes:
    once = random.Random(seed).randbytes(CHUNK)
    return once + once


class Pattern:
    """The stream of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._pool = memoryview(_pool(seed))
        self._current = (-1, b"")

    def _chunk(self, number: int) -> bytes:
        if self._current[0] != number:
            start = number * _STRIDE % CHUNK
            chunk = number.to_bytes(_NUMBER, "big") + self._pool[start : start + _BODY]
            self._current = (number, chunk)
        return self._current[1]

    def at(self, offset: int, length: int) -> bytes:
        """`length` bytes of the stream from `offset`."""
        if length <= 0:
            return b""
        number, begin = divmod(offset, CHUNK)
        if begin + length <= CHUNK:
            return self._chunk(number)[begin : begin + length]
        parts = []
        while length > 0:
            part = self._chunk(number)[begin : begin + length]
            parts.append(part)
            length -= len(part)
            number, begin = number + 1, 0
        return b"".join(parts)


class PatternVerifier:
    """Checks a stream as it arrives, in pieces of any size."""

    def __init__(self, seed: int) -> None:
        self._pattern = Pattern(seed)
        self.received = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes. Raises TransferError at the first wrong one, with its offset."""
        view = memoryview(data)
        while view:
            length = min(len(view), CHUNK - self.received % CHUNK)
            expected = self._pattern.at(self.received, length)
            if view[:length] != expected:
                self._explain(bytes(view), expected)
            self.received += length
            view = view[length:]

    def _explain(self, got: bytes, expected: bytes) -> NoReturn:
        """Say what is wrong, and where in the stream the bytes that came seem to belong."""
        wrong = _first_difference(got, expected)
        offset, came = self.received + wrong, got[wrong:]
        near = max(0, offset - _SEARCHED)
        around = self._pattern.at(near, 2 * _SEARCHED)
        # Bodies resemble each other in parts, so the place that fits longest is it, and the nearest of several.
        places = []
        found = around.find(came[:_SAMPLE]) if len(came) >= _SAMPLE else -1
        while found >= 0:
            fitting = _first_difference(around[found:], came)
            places.append((fitting, -abs(near + found - offset), near + found - offset))
            found = around.find(came[:_SAMPLE], found + 1)
        hint = ""
        if places:
            distance = max(places)[2]
            hint = f": {abs(distance)} bytes {'are missing' if distance > 0 else 'came again'}"
        raise TransferError(f"Byte {offset} of pattern {self._pattern.seed} is wrong{hint}")


def _first_difference(one: bytes, other: bytes) -> int:
    """The index of the first byte that differs, or the length of the shorter one."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
