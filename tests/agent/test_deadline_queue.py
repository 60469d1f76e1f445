"""Members that all get the same time."""

from __future__ import annotations

import asyncio

from msocks.agent.deadline_queue import DeadlineQueue


def make(patience_s: float = 0.05, limit: int = 10) -> tuple[DeadlineQueue[str], list[str]]:
    expired: list[str] = []
    queue = DeadlineQueue[str](asyncio.get_running_loop(), patience_s=patience_s, limit=limit, expire=expired.append)
    return queue, expired


async def test_a_member_expires_after_its_time_and_not_before():
    queue, expired = make(0.1)
    queue.add("a")
    await asyncio.sleep(0.05)
    queue.add("b")
    assert expired == []
    await asyncio.sleep(0.075)
    assert (expired, list(queue)) == (["a"], ["b"])
    await asyncio.sleep(0.05)
    assert (expired, len(queue)) == (["a", "b"], 0)


async def test_a_member_that_leaves_does_not_expire_and_those_behind_it_still_do():
    queue, expired = make()
    for name in "abc":
        queue.add(name)
    assert queue.discard("a")
    assert not queue.discard("a")
    await asyncio.sleep(0.1)
    assert expired == ["b", "c"]
    queue.add("d")
    await asyncio.sleep(0.1)
    assert expired == ["b", "c", "d"]


async def test_one_more_than_the_limit_and_the_oldest_goes():
    queue, expired = make(10, limit=2)
    for name in "abc":
        queue.add(name)
    assert (expired, list(queue)) == (["a"], ["b", "c"])
    assert queue.clear() == ["b", "c"]
    assert expired == ["a"]
