from __future__ import annotations

import asyncio

import pytest

from msocks.proxy.admission import Admission, FailureLimit, Source, source_of


class Connection:
    def __init__(self, source: Source = b"a") -> None:
        self.source = source
        self.abandoned = False

    def abandon(self) -> None:
        self.abandoned = True


def admission(total: int = 4, per_source: int = 2, timeout_s: float = 10) -> Admission:
    return Admission(asyncio.get_running_loop(), timeout_s=timeout_s, total=total, per_source=per_source)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%lo", "fe80::2", True),
    ],
)
def test_what_counts_as_one_source(one: str, other: str, same: bool):
    assert (source_of((one, 1)) == source_of((other, 2))) is same


async def test_the_oldest_of_the_same_source_makes_room():
    limits = admission()
    connections = [Connection() for _ in range(3)]
    for connection in connections:
        limits.enter(connection)
    assert [each.abandoned for each in connections] == [True, False, False]
    assert len(limits) == 2
    limits.close()


async def test_the_oldest_of_all_makes_room_when_all_places_are_taken():
    limits = admission(total=3, per_source=2)
    connections = [Connection(source) for source in (b"a", b"b", b"c", b"d")]
    for connection in connections:
        limits.enter(connection)
    assert [each.abandoned for each in connections] == [True, False, False, False]
    limits.close()


async def test_a_source_with_one_place_replaces_its_own():
    limits = admission(per_source=1)
    first, second, third = Connection(), Connection(), Connection()
    for connection in (first, second, third):
        limits.enter(connection)
    assert (first.abandoned, second.abandoned, third.abandoned) == (True, True, False)
    limits.leave(third)
    assert len(limits) == 0
    limits.close()


async def test_who_has_left_is_not_abandoned():
    limits = admission(timeout_s=0.02)
    left, stays = Connection(), Connection()
    limits.enter(left)
    limits.enter(stays)
    limits.leave(left)
    limits.leave(left)
    await asyncio.sleep(0.06)
    assert (left.abandoned, stays.abandoned) == (False, True)
    limits.close()


def test_failures_block_a_source_for_the_window_only():
    limit = FailureLimit(allowed=2, window_s=60)
    limit.failed(b"a", 0)
    assert not limit.blocked(b"a", 1)
    limit.failed(b"a", 1)
    assert limit.blocked(b"a", 2)
    assert not limit.blocked(b"b", 2)
    assert not limit.blocked(b"a", 61)
    limit.failed(b"a", 61)
    assert not limit.blocked(b"a", 62)


def test_the_number_of_remembered_sources_is_bounded():
    limit = FailureLimit(allowed=1, sources=100)
    for number in range(1000):
        limit.failed(number.to_bytes(4, "big"), 0)
    assert not limit.blocked((0).to_bytes(4, "big"), 1)
    assert limit.blocked((999).to_bytes(4, "big"), 1)
    assert len(limit._failures) == 100
