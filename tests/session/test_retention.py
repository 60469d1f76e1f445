"""Bytes sent and not yet known to have arrived."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from msocks.session.retention import Retention, acknowledged_bytes


@pytest.mark.parametrize(
    ("written", "unacknowledged", "fin_sent", "expected"),
    [
        (0, 0, False, 0),
        (100, 100, False, 0),
        (100, 40, False, 60),
        (100, 0, False, 100),
        (100, 101, True, 0),  # the FIN occupies one place of the sequence space
        (100, 1, True, 100),
        (100, 0, True, 100),
        (0, 1, True, 0),
    ],
)
def test_what_siocoutq_says_of_a_socket(written: int, unacknowledged: int, fin_sent: bool, expected: int) -> None:
    assert acknowledged_bytes(written, unacknowledged, fin_sent) == expected


class RetentionMachine(RuleBasedStateMachine):
    """Against a plain byte string and three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.retention = Retention()
        self.stream = b""
        self.base = self.sent = 0

    @rule(data=st.one_of(st.binary(max_size=8), st.integers(1, 9000).map(lambda size: bytes([size % 251]) * size)))
    def append(self, data: bytes) -> None:
        self.retention.append(data)
        self.stream += data

    @rule(share=st.floats(0, 1))
    def send(self, share: float) -> None:
        view = self.retention.next_unsent()
        if view is None:
            assert self.sent == len(self.stream)
        else:
            assert len(view) > 0
            assert bytes(view) == self.stream[self.sent : self.sent + len(view)]
            count = int(len(view) * share)
            self.retention.mark_sent(count)
            self.sent += count

    @rule(share=st.floats(0, 1))
    def release(self, share: float) -> None:
        offset = self.base + int((self.sent - self.base) * share)
        self.retention.release(offset)
        self.base = max(self.base, offset)

    @rule(share=st.floats(0, 1))
    def rewind(self, share: float) -> None:
        self.sent = self.base + int((len(self.stream) - self.base) * share)
        self.retention.rewind(self.sent)

    @rule(before=st.integers(1, 1000))
    def refuse_what_is_gone(self, before: int) -> None:
        with pytest.raises(ValueError, match="retained"):
            self.retention.rewind(self.base - before)
        with pytest.raises(ValueError, match="ever written"):
            self.retention.release(len(self.stream) + before)

    @invariant()
    def marks_agree(self) -> None:
        assert (self.retention.base, self.retention.sent, self.retention.end) == (
            self.base,
            self.sent,
            len(self.stream),
        )
        assert self.retention.retained == len(self.stream) - self.base
        assert self.retention.unsent == len(self.stream) - self.sent


TestRetention = RetentionMachine.TestCase


@given(st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=200))
def test_small_writes_come_out_whole(pieces: list[bytes]) -> None:
    retention = Retention()
    for piece in pieces:
        retention.append(piece)
    out = b""
    while (view := retention.next_unsent()) is not None:
        out += view
        retention.mark_sent(len(view))
    assert out == b"".join(pieces)
    retention.release(len(out))
    assert retention.retained == 0


def test_what_has_arrived_by_other_ways_is_dropped_when_it_is_appended():
    queue = Retention()
    queue.begin_at(100)
    queue.append(b"abc")
    queue.skip_to(110)
    assert (queue.base, queue.sent, queue.end, queue.retained) == (110, 110, 110, 0)
    queue.append(b"defgh")
    queue.append(b"ijKLM")
    assert (queue.base, queue.end) == (110, 113)
    view = queue.next_unsent()
    assert view is not None
    assert bytes(view) == b"KLM"
