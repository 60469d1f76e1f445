"""Measurements that wait for long: while one does, others are made, but never two at the same time.

A measurement is a generator that yields the instant until which it has nothing to do. Pure but for the clock.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """One measurement. `estimate_s` is how long it takes until it waits for the first time, or ends.

    `begin` is told whether no other has begun and not ended.
    """

    estimate_s: float
    begin: Callable[[bool], Generator[float, None, T]]


def interleaved(
    tasks: Iterable[Task[T]],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[T]:
    """The results, as they come about.

    Tasks begin in their order; where one waits, the next begins that is expected to be through by then. One that is not
    goes on late: what it does then is for it to measure.
    """
    waiting: list[tuple[float, int, Generator[float, None, T]]] = []
    numbers = itertools.count()
    left = list(tasks)
    while left or waiting:
        task = _next(left, waiting[0][0] - clock() if waiting else None)
        if task is not None:
            left.remove(task)
            current = task.begin(not waiting)
        else:
            due, _, current = heapq.heappop(waiting)
            sleep(max(0.0, due - clock()))
        try:
            heapq.heappush(waiting, (next(current), next(numbers), current))
        except StopIteration as end:
            yield end.value


def _next(left: list[Task[T]], seconds: float | None) -> Task[T] | None:
    """The first task that takes at most so long."""
    return next((task for task in left if seconds is None or task.estimate_s <= seconds), None)
