"""What is said again, and when, by a real clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from msocks.datapath.splice.residual import Residual, ResidualClock

RTO_MIN_S = 0.2


class Said:
    """One thing that was said, when it was said again, and whether it is over."""

    def __init__(self, clock: ResidualClock, timeout_s: float = 0) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.again_at: list[float] = []
        self.acknowledged = self.over = False
        self.residual = Residual(clock, self._say, lambda: self.acknowledged, self._on_over, timeout_s=timeout_s)

    def _say(self) -> None:
        self.again_at.append(self.loop.time() - self.began)

    def _on_over(self, residual: Residual) -> None:
        assert residual is self.residual
        self.over = True


@pytest.fixture
async def clock() -> AsyncIterator[ResidualClock]:
    made = ResidualClock(asyncio.get_running_loop())
    yield made
    made.close()


async def test_the_time_out_is_doubled_until_it_is_acknowledged(clock: ResidualClock):
    said = Said(clock)
    await asyncio.sleep(3.5 * RTO_MIN_S)
    assert said.again_at == pytest.approx([RTO_MIN_S, 3 * RTO_MIN_S], abs=0.08)
    said.acknowledged = True
    await asyncio.sleep(4 * RTO_MIN_S)
    assert said.over
    assert len(said.again_at) == 2


async def test_an_earlier_time_does_not_wait_for_a_later_one_that_came_before(clock: ResidualClock):
    later, sooner = Said(clock, timeout_s=1), Said(clock)
    await asyncio.sleep(1.7 * RTO_MIN_S)
    assert len(sooner.again_at) == 1
    assert not later.again_at


async def test_what_was_acknowledged_or_cancelled_is_not_said_again(clock: ResidualClock):
    heard, cancelled = Said(clock), Said(clock)
    heard.acknowledged = True
    cancelled.residual.cancel()
    await asyncio.sleep(2 * RTO_MIN_S)
    assert not heard.again_at
    assert not cancelled.again_at
    assert (heard.over, cancelled.over) == (True, False)


class Patient:
    """Waits for its first time, and says when it came."""

    def __init__(self, then_after_s: float | None = None) -> None:
        self.times: list[float] = []
        self._then_after_s = then_after_s

    def on_time(self) -> float | None:
        self.times.append(asyncio.get_running_loop().time())
        return self._then_after_s if len(self.times) == 1 else None


async def test_the_first_time_comes_after_the_least_time_out_unless_it_is_let_go_of(clock: ResidualClock):
    began = asyncio.get_running_loop().time()
    once, twice, gone = Patient(), Patient(then_after_s=RTO_MIN_S), Patient()
    for each in (gone, once, twice):
        clock.wake_first(each)
    clock.let_go(gone)
    await asyncio.sleep(3 * RTO_MIN_S)
    assert [at - began for at in once.times] == pytest.approx([RTO_MIN_S], abs=0.08)
    assert [at - began for at in twice.times] == pytest.approx([RTO_MIN_S, 2 * RTO_MIN_S], abs=0.08)
    assert not gone.times


async def test_the_first_time_does_not_wait_for_a_later_one(clock: ResidualClock):
    later, first = Said(clock, timeout_s=1), Patient()
    clock.wake_first(first)
    await asyncio.sleep(1.7 * RTO_MIN_S)
    assert len(first.times) == 1
    assert not later.again_at


async def test_thousands_wait_on_one_timer(clock: ResidualClock, monkeypatch: pytest.MonkeyPatch):
    loop = asyncio.get_running_loop()
    timers = []
    call_at = loop.call_at

    def counted(*arguments: Any, **more: Any) -> asyncio.TimerHandle:
        timers.append(arguments)
        return call_at(*arguments, **more)

    monkeypatch.setattr(loop, "call_at", counted)
    many = [Said(clock) for _ in range(2000)]
    await asyncio.sleep(1.7 * RTO_MIN_S)
    assert all(len(said.again_at) == 1 for said in many)
    assert len(timers) < 50
