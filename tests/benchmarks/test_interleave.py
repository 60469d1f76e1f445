"""While one measurement waits, others are made; never two at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator

from benchmarks.interleave import Task, Wait, interleaved


class Clock:
    """Goes on only where somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def measuring(clock: Clock, log: list[str], name: str, work: float, wait: float = 0.0, exact: bool = True) -> Task[str]:
    def begin(alone: bool) -> Generator[Wait, None, str]:
        log.append(f"{clock.now:g} {name} begins{' alone' if alone else ''}")
        clock.pass_by(work)
        if wait:
            yield Wait(clock.now + wait, exact)
            log.append(f"{clock.now:g} {name} goes on")
            clock.pass_by(work)
        return name

    return Task(work, begin)


def played(make: Callable[[Clock, list[str]], list[Task[str]]]) -> tuple[list[str], list[str]]:
    clock, log = Clock(), list[str]()
    return list(interleaved(make(clock, log), clock, clock.pass_by)), log


def test_what_takes_no_longer_than_the_wait_is_done_meanwhile():
    results, log = played(lambda clock, log: [
        measuring(clock, log, "long", 1, wait=10), measuring(clock, log, "one", 4), measuring(clock, log, "two", 5),
    ])  # fmt: skip
    assert results == ["one", "two", "long"]
    assert log == ["0 long begins alone", "1 one begins", "5 two begins", "11 long goes on"]


def test_what_would_take_longer_is_done_afterwards_and_a_shorter_one_instead():
    results, log = played(lambda clock, log: [
        measuring(clock, log, "long", 1, wait=3), measuring(clock, log, "large", 4), measuring(clock, log, "small", 3),
    ])  # fmt: skip
    assert results == ["small", "long", "large"]
    assert log == ["0 long begins alone", "1 small begins", "4 long goes on", "5 large begins alone"]


def test_several_wait_at_the_same_time():
    results, log = played(
        lambda clock, log: [measuring(clock, log, name, 1, wait=wait) for name, wait in (("a", 9), ("b", 5), ("c", 2))]
    )
    assert results == ["c", "b", "a"]
    assert log[3:] == ["5 c goes on", "7 b goes on", "10 a goes on"]


def test_what_need_not_go_on_at_an_instant_waits_for_others_to_end():
    _, log = played(lambda clock, log: [
        measuring(clock, log, "loose", 1, wait=3, exact=False), measuring(clock, log, "large", 4),
    ])  # fmt: skip
    assert log == ["0 loose begins alone", "1 large begins", "5 loose goes on"]
