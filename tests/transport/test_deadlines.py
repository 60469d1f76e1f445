from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.stepped_loop import SteppedLoop

from msocks.transport.deadlines import Deadlines


@pytest.fixture
def stepped_loop() -> Iterator[SteppedLoop]:
    loop = SteppedLoop()
    yield loop
    loop.close()


def test_members_are_due_in_the_order_in_which_they_came(stepped_loop: SteppedLoop):
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(stepped_loop, 0.05, due.append)
    for name in "abc":
        deadlines.add(name)
        stepped_loop.advance(0.01)
    assert due == []
    stepped_loop.advance(0.1)
    assert due == ["a", "b", "c"]
    assert len(deadlines) == 0


def test_nobody_is_due_early_or_much_too_late(stepped_loop: SteppedLoop):
    due: list[float] = []
    deadlines: Deadlines[int] = Deadlines(stepped_loop, 0.2, lambda _: due.append(stepped_loop.time()))
    added = []
    for number in range(5):
        added.append(stepped_loop.time())
        deadlines.add(number)
        stepped_loop.advance(0.03)
    stepped_loop.advance(0.3)
    for begin, end in zip(added, due, strict=True):
        assert 0.199 <= end - begin < 0.2 * 1.05 + 0.002


def test_a_discarded_member_is_never_due_and_one_added_again_waits_anew(stepped_loop: SteppedLoop):
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(stepped_loop, 0.06, due.append)
    deadlines.add("discarded")
    deadlines.add("renewed")
    assert deadlines.discard("discarded")
    assert not deadlines.discard("discarded")
    assert not deadlines.discard("never there")
    stepped_loop.advance(0.04)
    deadlines.add("renewed")
    stepped_loop.advance(0.04)
    assert due == []
    assert "renewed" in deadlines
    assert deadlines.oldest() == "renewed"
    stepped_loop.advance(0.06)
    assert due == ["renewed"]


def test_a_member_may_be_added_again_when_it_is_due(stepped_loop: SteppedLoop):
    due: list[str] = []

    def again(member: str) -> None:
        due.append(member)
        if len(due) < 3:
            deadlines.add(member)

    deadlines: Deadlines[str] = Deadlines(stepped_loop, 0.02, again)
    deadlines.add("a")
    stepped_loop.advance(0.15)
    assert due == ["a", "a", "a"]


def test_one_that_fails_does_not_stop_the_others(stepped_loop: SteppedLoop):
    due: list[str] = []
    failures: list[object] = []
    stepped_loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))

    def fail_once(member: str) -> None:
        due.append(member)
        if member == "bad":
            raise RuntimeError

    deadlines: Deadlines[str] = Deadlines(stepped_loop, 0.02, fail_once)
    deadlines.add("bad")
    deadlines.add("good")
    stepped_loop.advance(0.1)
    assert due == ["bad", "good"]
    assert len(failures) == 1


def test_taken_members_are_never_due_and_later_ones_are(stepped_loop: SteppedLoop):
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(stepped_loop, 0.02, due.append)
    deadlines.add("a")
    deadlines.add("b")
    assert deadlines.take_all() == ["a", "b"]
    stepped_loop.advance(0.05)
    assert due == []
    deadlines.add("c")
    stepped_loop.advance(0.021)
    assert due == ["c"]


def test_one_more_than_the_limit_and_the_oldest_is_due(stepped_loop: SteppedLoop):
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(stepped_loop, 10, due.append, limit=2)
    for name in "abac":  # a, added again, is younger than b
        deadlines.add(name)
    assert (due, list(deadlines)) == (["b"], ["a", "c"])
    assert deadlines.take_all() == ["a", "c"]
    assert due == ["b"]


def test_nobody_behind_another_is_due_before_its_time(stepped_loop: SteppedLoop):
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(stepped_loop, 0.1, due.append)
    deadlines.add("a")
    stepped_loop.advance(0.05)
    deadlines.add("b")
    stepped_loop.advance(0.048)
    assert due == []
    stepped_loop.advance(0.004)
    assert (due, list(deadlines)) == (["a"], ["b"])
    stepped_loop.advance(0.046)
    assert due == ["a"]
    stepped_loop.advance(0.009)  # and 5 % later at most
    assert (due, len(deadlines)) == (["a", "b"], 0)
