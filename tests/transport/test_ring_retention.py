"""Retention in shared memory, against a plain byte string; and another process's view of it."""

from __future__ import annotations

import mmap
import os
import socket

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from msocks.session.byte_budget import ByteBudget
from msocks.transport.ring_retention import RingRetention

PAGE = mmap.PAGESIZE
SIZE = 8 * PAGE


class RingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        descriptor = os.memfd_create("test")
        os.ftruncate(descriptor, PAGE + SIZE)
        self.memory = mmap.mmap(descriptor, PAGE + SIZE)
        os.close(descriptor)
        self.budget = ByteBudget(1 << 30)
        self.told_base = 0
        self.ring = self.new()
        self.writer, self.reader = socket.socketpair()
        self.reader.setblocking(False)
        self.stream = b""
        self.base = self.sent = 0

    def new(self) -> RingRetention:
        return RingRetention(self.memory, PAGE, SIZE, self.tell_base, self.budget)

    def tell_base(self, base: int) -> None:
        self.told_base = base

    def teardown(self) -> None:
        self.writer.close()
        self.reader.close()

    @rule(size=st.integers(1, SIZE), from_socket=st.booleans())
    def append(self, size: int, from_socket: bool) -> None:
        data = bytes((len(self.stream) + place) % 251 for place in range(min(size, self.ring.free)))
        if not data:
            return
        if from_socket:
            self.writer.sendall(data)
            assert self.ring.take_from(self.reader, len(data) + 1) == len(data)
        else:
            self.ring.append(data)
        self.stream += data

    @rule(share=st.floats(0, 1))
    def send(self, share: float) -> None:
        view = self.ring.next_unsent()
        if view is None:
            assert self.sent == len(self.stream)
        else:
            assert view
            assert bytes(view) == self.stream[self.sent : self.sent + len(view)]
            count = int(len(view) * share)
            self.ring.mark_sent(count)
            self.sent += count

    @rule(share=st.floats(0, 1))
    def release(self, share: float) -> None:
        self.base += int((self.sent - self.base) * share)
        self.ring.release(self.base)

    @rule(share=st.floats(0, 1))
    def rewind(self, share: float) -> None:
        self.sent = self.base + int((self.sent - self.base) * share)
        self.ring.rewind(self.sent)

    @rule()
    def another_process(self) -> None:
        self.budget.give_back(self.ring.retained)
        self.ring = self.new()
        self.ring.resume_at(self.told_base, self.sent, len(self.stream))

    @invariant()
    def counts(self) -> None:
        ring = self.ring
        assert (ring.base, ring.sent, ring.end) == (self.base, self.sent, len(self.stream))
        assert self.budget.held == ring.retained == SIZE - ring.free
        assert self.told_base == self.base


TestRing = RingMachine.TestCase


def test_what_cannot_be_is_refused() -> None:
    ring = RingRetention(mmap.mmap(-1, SIZE), 0, SIZE, lambda base: None, None)
    for state in ((1, 0, 5), (0, 6, 5), (0, 0, SIZE + 1)):
        with pytest.raises(ValueError, match="no state of a ring"):
            ring.resume_at(*state)
    ring.append(bytes(10))
    with pytest.raises(ValueError, match="only 10 bytes"):
        ring.release(11)
    with pytest.raises(ValueError, match="retained"):
        ring.rewind(11)
    with pytest.raises(ValueError, match="room for"):
        ring.append(bytes(SIZE))


def test_what_has_arrived_takes_up_no_memory() -> None:
    descriptor = os.memfd_create("test")
    size = 4 * 1024 * 1024
    os.ftruncate(descriptor, size)
    ring = RingRetention(mmap.mmap(descriptor, size), 0, size, lambda base: None, None)
    for _ in range(5):
        ring.append(bytes(size - 1000))
        assert os.fstat(descriptor).st_blocks * 512 >= size - 2 * PAGE
        ring.release(ring.end)
        assert os.fstat(descriptor).st_blocks * 512 <= 2 * PAGE
    os.close(descriptor)


def test_a_read_goes_on_beyond_the_end_of_the_ring() -> None:
    ring = RingRetention(mmap.mmap(-1, SIZE), 0, SIZE, lambda base: None, None)
    ring.append(bytes(SIZE - 10))
    ring.release(SIZE - 10)
    writer, reader = socket.socketpair()
    with writer, reader:
        reader.setblocking(False)
        writer.sendall(b"0123456789abcdef")
        assert ring.take_from(reader, 100) == 16
        first = bytes(ring.next_unsent() or b"")
        ring.mark_sent(len(first))
        assert (first, bytes(ring.next_unsent() or b"")) == (b"0123456789", b"abcdef")
        writer.sendall(bytes(SIZE - 16 - 6))
        assert ring.take_from(reader, SIZE) == SIZE - 16 - 6
