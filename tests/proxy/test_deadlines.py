from __future__ import annotations

import asyncio

from msocks.proxy.deadlines import Deadlines


async def test_members_are_due_in_the_order_in_which_they_came():
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop(), 0.05, due.append)
    for name in "abc":
        deadlines.add(name)
        await asyncio.sleep(0.01)
    assert due == []
    await asyncio.sleep(0.1)
    assert due == ["a", "b", "c"]
    assert len(deadlines) == 0


async def test_nobody_is_due_early_or_much_too_late():
    loop = asyncio.get_running_loop()
    due: list[float] = []
    deadlines: Deadlines[int] = Deadlines(loop, 0.2, lambda _: due.append(loop.time()))
    added = []
    for number in range(5):
        added.append(loop.time())
        deadlines.add(number)
        await asyncio.sleep(0.03)
    await asyncio.sleep(0.3)
    for begin, end in zip(added, due, strict=True):
        assert 0.199 <= end - begin < 0.2 * 1.05 + 0.1


async def test_a_discarded_member_is_never_due_and_one_added_again_waits_anew():
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop(), 0.06, due.append)
    deadlines.add("discarded")
    deadlines.add("renewed")
    deadlines.discard("discarded")
    deadlines.discard("never there")
    await asyncio.sleep(0.04)
    deadlines.add("renewed")
    await asyncio.sleep(0.04)
    assert due == []
    assert "renewed" in deadlines
    assert deadlines.oldest() == "renewed"
    await asyncio.sleep(0.06)
    assert due == ["renewed"]


async def test_a_member_may_be_added_again_when_it_is_due():
    due: list[str] = []

    def again(member: str) -> None:
        due.append(member)
        if len(due) < 3:
            deadlines.add(member)

    deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop(), 0.02, again)
    deadlines.add("a")
    await asyncio.sleep(0.15)
    assert due == ["a", "a", "a"]


async def test_one_that_fails_does_not_stop_the_others():
    due: list[str] = []
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))

    def fail_once(member: str) -> None:
        due.append(member)
        if member == "bad":
            raise RuntimeError

    deadlines: Deadlines[str] = Deadlines(loop, 0.02, fail_once)
    deadlines.add("bad")
    deadlines.add("good")
    await asyncio.sleep(0.1)
    assert due == ["bad", "good"]
    assert len(failures) == 1


async def test_closed_deadlines_are_never_due():
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop(), 0.02, due.append)
    deadlines.add("a")
    deadlines.close()
    await asyncio.sleep(0.05)
    assert due == []
