from __future__ import annotations

import pytest

from msocks.errors import EndReason, InvalidState
from msocks.session.record import SessionRecord, SessionState, Tombstones
from msocks.values.endpoint import Endpoint
from msocks.values.ids import SessionId

DESTINATION = Endpoint.parse("server.example:80")


@pytest.fixture
def record() -> SessionRecord:
    return SessionRecord(SessionId.generate(), "alice", DESTINATION, opened_at=0.0)


def live(record: SessionRecord, generation: int = 1) -> SessionRecord:
    assert record.claim(generation)
    record.attach(generation)
    return record


def ended(number: int = 1, user: str = "alice") -> SessionRecord:
    made = SessionRecord(SessionId(number.to_bytes(16, "big")), user, DESTINATION, opened_at=0.0)
    made.finish(EndReason.SERVER_RESET)
    return made


def test_a_session_goes_from_connecting_to_live_to_parked_and_back(record: SessionRecord):
    assert record.state is SessionState.CONNECTING
    live(record)
    assert (record.state, record.generation) == (SessionState.LIVE, 1)
    assert record.detach(1, now=5.0)
    assert (record.state, record.detached_at) == (SessionState.PARKED, 5.0)
    live(record, 2)
    assert (record.state, record.detached_at) == (SessionState.LIVE, None)


def test_only_a_higher_generation_is_accepted(record: SessionRecord):
    live(record, 3)
    assert not record.claim(3)
    assert not record.claim(2)
    with pytest.raises(InvalidState):
        record.attach(3)
    assert record.claim(4)


def test_a_higher_claim_overtakes_one_that_waits(record: SessionRecord):
    live(record)
    assert record.claim(2)
    assert record.holds_claim(2)
    assert record.claim(5)
    assert not record.holds_claim(2)
    assert not record.claim(4)
    assert record.newest_claim == 5
    record.attach(5)
    assert not record.holds_claim(5)


def test_a_withdrawn_claim_leaves_the_generation_free(record: SessionRecord):
    live(record)
    assert record.claim(2)
    record.withdraw(2)
    assert record.newest_claim == 1
    assert record.claim(2)


def test_withdrawing_an_overtaken_claim_changes_nothing(record: SessionRecord):
    live(record)
    record.claim(2)
    record.claim(3)
    record.withdraw(2)
    assert record.holds_claim(3)


def test_the_loss_of_an_older_leg_is_no_loss(record: SessionRecord):
    live(record, 1)
    live(record, 2)
    assert not record.detach(1, now=1.0)
    assert record.state is SessionState.LIVE
    assert record.detach(2, now=1.0)
    assert not record.detach(2, now=9.0)
    assert record.detached_at == 1.0


def test_connected_without_a_leg_is_parked(record: SessionRecord):
    record.claim(1)
    record.connected_without_leg(now=3.0)
    assert (record.state, record.detached_at) == (SessionState.PARKED, 3.0)
    live(record, 2)
    record.connected_without_leg(now=4.0)
    assert record.state is SessionState.LIVE


def test_a_session_ends_once(record: SessionRecord):
    live(record)
    record.claim(2)
    assert record.finish(EndReason.EXPIRED)
    assert not record.finish(EndReason.SERVER_RESET)
    assert (record.state, record.end) == (SessionState.ENDED, EndReason.EXPIRED)
    assert not record.holds_claim(2)
    assert not record.detach(1, now=1.0)
    with pytest.raises(InvalidState):
        record.attach(2)


def test_a_tombstone_tells_how_a_session_ended():
    stones = Tombstones(limit=10, lifetime_s=60)
    record = SessionRecord(SessionId.generate(), "alice", DESTINATION, opened_at=0.0)
    live(record, 4)
    record.finish(EndReason.REFUSED, reply_code=5)
    stones.bury(record, now=100.0)
    stone = stones.find("alice", record.session, now=101.0)
    assert stone is not None
    assert (stone.destination, stone.generation, stone.end, stone.reply_code) == (
        DESTINATION,
        4,
        EndReason.REFUSED,
        5,
    )
    assert stones.find("bob", record.session, now=101.0) is None


def test_who_lives_is_not_buried(record: SessionRecord):
    with pytest.raises(InvalidState):
        Tombstones(10, 60).bury(record, now=0.0)


def test_tombstones_crumble():
    stones = Tombstones(limit=10, lifetime_s=60)
    first, second = ended(1), ended(2)
    stones.bury(first, now=0.0)
    stones.bury(second, now=30.0)
    assert stones.find("alice", first.session, now=59.9) is not None
    assert stones.find("alice", first.session, now=60.0) is None
    assert stones.find("alice", second.session, now=60.0) is not None
    assert len(stones) == 1


def test_the_number_of_tombstones_is_bounded_and_the_newest_stay():
    stones = Tombstones(limit=3, lifetime_s=60)
    records = [ended(number) for number in range(1, 6)]
    for record in records:
        stones.bury(record, now=0.0)
    found = [stones.find("alice", record.session, now=0.0) is not None for record in records]
    assert found == [False, False, True, True, True]
