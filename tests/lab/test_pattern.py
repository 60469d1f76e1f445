"""The pattern betrays whatever happens to a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks_lab import TransferError
from msocks_lab.pattern import CHUNK, Pattern, PatternVerifier

STREAM = Pattern(7).at(0, 7 * CHUNK)


@given(st.integers(0, 5 * CHUNK), st.integers(0, CHUNK + 100))
def test_any_part_is_the_same_as_cut_from_the_whole(offset: int, length: int):
    assert Pattern(7).at(offset, length) == STREAM[offset : offset + length]


@given(st.lists(st.integers(1, 2 * CHUNK), max_size=20))
def test_pieces_of_any_size_are_verified(sizes: list[int]):
    verifier, begin = PatternVerifier(7), 0
    for size in sizes:
        verifier.feed(STREAM[begin : begin + size])
        begin = min(begin + size, len(STREAM))
    assert verifier.received == begin


def test_no_chunk_looks_like_another():
    pattern = Pattern(7)
    chunks = {pattern.at(number * CHUNK, 256) for number in range(3000)}
    assert len(chunks) == 3000


def test_seeds_differ():
    assert Pattern(1).at(8, 64) != Pattern(2).at(8, 64)


@pytest.mark.parametrize("at", [0, 1, 1000, CHUNK - 3, CHUNK, 3 * CHUNK + 5])
@pytest.mark.parametrize("length", [1, 7, 1448, CHUNK, 2 * CHUNK])
def test_missing_bytes_are_seen_where_they_are_missing(at: int, length: int):
    verifier = PatternVerifier(7)
    with pytest.raises(TransferError, match=f"{length} bytes are missing") as caught:
        verifier.feed(STREAM[:at] + STREAM[at + length :])
    # The bytes that follow may by chance be those that should be there, as in the zeros of a chunk's number.
    named = int(str(caught.value).split()[1])
    assert at <= named <= at + 8


@pytest.mark.parametrize("at", [1448, CHUNK, 3 * CHUNK + 5])
@pytest.mark.parametrize("length", [1, 1448, CHUNK])
def test_repeated_bytes_are_seen(at: int, length: int):
    length = min(length, at)
    verifier = PatternVerifier(7)
    with pytest.raises(TransferError, match=f"{length} bytes came again"):
        verifier.feed(STREAM[:at] + STREAM[at - length :])


def test_a_changed_byte_is_seen():
    wrong = bytearray(STREAM)
    wrong[200_000] ^= 1
    with pytest.raises(TransferError, match="Byte 200000 of pattern 7 is wrong"):
        PatternVerifier(7).feed(wrong)


def test_a_record_starts_again_at_its_own_offset():
    verifier = PatternVerifier(7)
    verifier.feed(STREAM[:100])
    with pytest.raises(TransferError, match="Byte 100 "):
        verifier.feed(STREAM[:100])
