"""Measurements that wait for long: while one does, others are made, but never two at the same time.

A measurement is a generator that yields a `Wait` when it has nothing to do. Pure but for the clock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until an instant. What is not `exact` may be any later."""

    until: float
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """One measurement. `estimate_s` is how long it takes until it waits for the first time, or ends.

    `begin` is told whether no other has begun and not ended.
    """

    estimate_s: float
    begin: Callable[[bool], Generator[Wait, None, T]]


def interleaved(
    tasks: Iterable[Task[T]],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[T]:
    """The results, as they come about.

    Tasks begin in their order; where one waits, the next begins that is expected to be through by then. One that is not
    goes on late: what it does then is for it to measure.
    """
    waiting: dict[int, tuple[Wait, Generator[Wait, None, T]]] = {}
    numbers = itertools.count()
    left = list(tasks)
    while left or waiting:
        number = min(waiting, key=lambda each: waiting[each][0].until, default=None)
        task = None if number is not None and waiting[number][0].until <= clock() else _next(left, waiting, clock())
        if task is not None:
            left.remove(task)
            number, current = next(numbers), task.begin(not waiting)
        else:
            assert number is not None
            wait, current = waiting.pop(number)
            sleep(max(0.0, wait.until - clock()))
        try:
            waiting[number] = next(current), current
        except StopIteration as end:
            yield end.value


def _next(left: list[Task[T]], waiting: dict[int, tuple[Wait, Generator[Wait, None, T]]], now: float) -> Task[T] | None:
    """The first task that will be through before anything has to go on."""
    due = min((wait.until for wait, _ in waiting.values() if wait.exact), default=float("inf"))
    return next((task for task in left if now + task.estimate_s <= due), None)
