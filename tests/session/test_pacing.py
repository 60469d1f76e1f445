"""The pace of a leg after a move, on a model of a link: a rate, a round trip, a queue."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from msocks.session import pacing
from msocks.session.pacing import Flight, Pacing

MBIT = 125_000.0
STEP_S = 0.001


@dataclass
class Link:
    """A bottleneck, and one sender that wants to send `wanted` bytes per second over it."""

    rate: float
    rtt_s: float
    wanted: float
    foreign_s: float = 0.0  # what somebody else keeps in the queue, in seconds
    waiting: bool = True
    now: float = 0.0
    queue: float = 0.0
    longest_s: float = 0.0
    acknowledged: float = 0.0

    def run(self, leg: Pacing, until: float) -> None:
        """Let time pass."""
        look_at = self.now + leg.interval_s
        while self.now < until:
            self.now += STEP_S
            sent = min(self.wanted, leg.rate or self.wanted) * STEP_S
            gone = min(self.queue + sent, self.rate * STEP_S)
            self.queue += sent - gone
            self.acknowledged += gone
            self.longest_s = max(self.longest_s, self.queue / self.rate)
            if self.now >= look_at:
                leg.advance(self.flight())
                look_at = self.now + leg.interval_s

    def flight(self) -> Flight:
        rtt_s = self.rtt_s + self.queue / self.rate + self.foreign_s
        return Flight(self.now, int(self.acknowledged), self.waiting, rtt_s, self.rtt_s)


@pytest.mark.parametrize("rate", [2 * MBIT, 20 * MBIT, 1000 * MBIT])
@pytest.mark.parametrize("rtt_s", [0.005, 0.05, 0.2])
def test_the_queue_stays_short_and_the_link_busy(rate: float, rtt_s: float) -> None:
    link, leg = Link(rate, rtt_s, wanted=1.05 * rate), Pacing(0.0)
    link.run(leg, 3.0)
    assert link.longest_s < 0.06
    before = link.acknowledged
    link.run(leg, 8.0)
    assert link.acknowledged - before > 0.97 * rate * 5.0


def test_a_link_whose_queue_stays_empty_is_never_paced() -> None:
    link, leg = Link(1000 * MBIT, 0.05, wanted=900 * MBIT), Pacing(0.0)
    link.run(leg, 5.0)
    assert leg.rate is None
    assert not leg.over


def test_it_ends_after_a_while() -> None:
    link, leg = Link(20 * MBIT, 0.05, wanted=30 * MBIT), Pacing(0.0)
    link.run(leg, 5.0)
    assert leg.rate is not None
    link.run(leg, pacing.LASTS_S + 0.2)
    assert leg.over
    assert leg.rate is None


def test_a_queue_that_somebody_else_keeps_full_ends_it() -> None:
    link, leg = Link(20 * MBIT, 0.05, wanted=10 * MBIT, foreign_s=0.08), Pacing(0.0)
    link.run(leg, 1.0)
    assert leg.rate is not None
    link.run(leg, 2.5)
    assert leg.over
    assert leg.rate is None


def test_a_program_that_sends_little_is_not_taken_for_a_slow_link() -> None:
    link, leg = Link(20 * MBIT, 0.05, wanted=0.01 * MBIT, foreign_s=0.08, waiting=False), Pacing(0.0)
    link.run(leg, 5.0)
    assert leg.rate is None


def test_a_link_that_becomes_faster_is_used() -> None:
    link, leg = Link(2 * MBIT, 0.05, wanted=2.2 * MBIT), Pacing(0.0)
    link.run(leg, 2.0)
    link.rate, link.wanted = 20 * MBIT, 30 * MBIT
    link.run(leg, 5.0)
    assert leg.rate is not None
    assert leg.rate > 15 * MBIT


def test_the_pace_is_never_below_four_segments_in_each_round_trip() -> None:
    leg = Pacing(0.0)
    for number in range(4):
        leg.advance(Flight(number * 0.1, 0, True, 0.2, 0.05))
    assert leg.rate == pytest.approx(5_840 / 0.2)


def test_two_looks_at_the_same_moment_are_harmless() -> None:
    leg = Pacing(0.0)
    for _ in range(3):
        leg.advance(Flight(1.0, 1000, True, 0.2, 0.05))
    assert leg.rate is None
