"""The mobile session's life, as a script of events and effects."""

from __future__ import annotations

from typing import Any

import pytest

from msocks.errors import (
    DestinationRefused,
    EndReason,
    LinkUnavailable,
    SessionEnded,
    SessionReset,
)
from msocks.protocol.leg import LegReply, LegStatus
from msocks.session.mobile import CONNECT_REPLY_S, HOLD_DOWN_S, MobileSession
from msocks.session.mobile_effects import (
    Abandon,
    Attempt,
    Carried,
    Ended,
    MoveCause,
    MoveFailed,
    Parked,
    SessionState,
)
from msocks.session.patience import TURN_S

OK = LegReply(status=LegStatus.OK)
RTT = {"wifi": 0.005, "lte": 0.05}


@pytest.fixture
def session() -> MobileSession:
    return MobileSession("server:80")


@pytest.fixture
def live(session: MobileSession) -> MobileSession:
    session.links_changed(0, ("wifi", "lte"), RTT)
    session.request_sent(0, 1)
    assert session.replied(0, 1, OK) == [Carried(1, "wifi", None, MoveCause.FIRST)]
    return session


def verdict(status: LegStatus, **fields: Any) -> LegReply:
    return LegReply(status=status, **fields)


def test_the_hold_down_is_as_long_as_the_caller_says(live: MobileSession):
    assert live.carried_by == "wifi"
    assert live.links_changed(1, ("lte", "wifi"), RTT, 10) == []
    assert live.deadline == 11
    assert live.on_time(10.9) == []
    # Shorter in the middle of it: at once where that is over.
    assert live.links_changed(10.9, ("lte", "wifi"), RTT, 5) == [Attempt(2, "lte", reconnect=True, handover_from=1)]


def test_a_link_that_is_released_is_not_preferred_any_more(live: MobileSession):
    live.move(1, "lte")
    live.replied(1, 2, OK)
    live.links_changed(2, ("wifi", "lte"), RTT)
    assert live.deadline is None
    live.release()
    live.links_changed(3, ("wifi", "lte"), RTT)
    assert live.deadline == 3 + HOLD_DOWN_S


def test_it_connects_over_the_preferred_link(session: MobileSession) -> None:
    assert session.state is SessionState.CONNECTING
    assert session.links_changed(0, (), {}) == []
    assert session.links_changed(1, ("wifi", "lte"), RTT) == [Attempt(1, "wifi", reconnect=False)]
    session.request_sent(1, 1)
    assert session.deadline == 1 + CONNECT_REPLY_S
    session.replied(2, 1, OK)
    assert (session.state, session.link, session.generation, session.moves) == (SessionState.LIVE, "wifi", 1, 0)


def test_a_connect_whose_link_is_lost_is_repeated_over_the_other_one(session: MobileSession) -> None:
    session.links_changed(0, ("wifi", "lte"), RTT)
    session.request_sent(0, 1)
    assert session.links_changed(1, ("lte",), RTT) == [Abandon(1), Attempt(2, "lte", reconnect=False)]
    assert session.replied(1, 1, OK) == []
    assert session.replied(1, 2, OK) == [Carried(2, "lte", None, MoveCause.FIRST)]


def test_a_lost_link_parks_and_reconnects_at_once(live: MobileSession) -> None:
    assert live.links_changed(1, ("lte",), RTT) == [Parked(1), Attempt(2, "lte", reconnect=True)]
    assert live.state is SessionState.PARKED
    assert live.replied(1.1, 2, OK) == [Carried(2, "lte", "wifi", MoveCause.LINK_LOST)]
    assert (live.state, live.moves) == (SessionState.LIVE, 1)


def test_without_any_link_it_waits_and_asks_for_no_timer(live: MobileSession) -> None:
    assert live.links_changed(1, (), {}) == [Parked(1)]
    assert live.deadline is None
    assert live.links_changed(1000, ("lte",), RTT) == [Attempt(2, "lte", reconnect=True)]


def test_a_lost_leg_is_replaced_on_the_same_link(live: MobileSession) -> None:
    assert live.leg_lost(1, 1) == [Parked(1), Attempt(2, "wifi", reconnect=True)]
    assert live.leg_lost(1, 1) == []
    assert live.replied(1, 2, OK) == [Carried(2, "wifi", "wifi", MoveCause.LEG_LOST)]


def test_it_goes_back_to_the_preferred_link_after_a_hold_down(live: MobileSession) -> None:
    live.links_changed(1, ("lte",), RTT)
    live.replied(1, 2, OK)
    assert live.links_changed(5, ("wifi", "lte"), RTT) == []
    assert live.deadline == 5 + HOLD_DOWN_S
    assert live.on_time(5.5) == []
    assert live.on_time(5 + HOLD_DOWN_S) == [Attempt(3, "wifi", reconnect=True, handover_from=2)]
    assert live.state is SessionState.LIVE
    assert live.replied(7, 3, OK) == [Carried(3, "wifi", "lte", MoveCause.PREFERRED)]


def test_a_link_that_flaps_within_the_hold_down_is_not_returned_to(live: MobileSession) -> None:
    live.links_changed(1, ("lte",), RTT)
    live.replied(1, 2, OK)
    live.links_changed(5, ("wifi", "lte"), RTT)
    live.links_changed(5.9, ("lte",), RTT)
    assert live.links_changed(6, ("wifi", "lte"), RTT) == []
    assert live.on_time(6.5) == []
    assert live.on_time(7) == [Attempt(3, "wifi", reconnect=True, handover_from=2)]


def test_a_requested_move_makes_before_it_breaks_and_sticks(live: MobileSession) -> None:
    assert live.move(1, "lte") == [Attempt(2, "lte", reconnect=True, handover_from=1)]
    assert (live.state, live.link) == (SessionState.LIVE, "wifi")
    assert live.replied(1.1, 2, OK) == [Carried(2, "lte", "wifi", MoveCause.REQUESTED)]
    assert live.on_time(100) == []
    assert live.links_changed(101, ("wifi",), RTT) == [Parked(2), Attempt(3, "wifi", reconnect=True)]
    live.replied(101, 3, OK)
    live.links_changed(102, ("wifi", "lte"), RTT)
    assert live.on_time(102 + HOLD_DOWN_S) == [Attempt(4, "lte", reconnect=True, handover_from=3)]


def test_a_move_to_where_it_is_is_done_at_once(live: MobileSession) -> None:
    assert live.move(1, "wifi") == [Carried(1, "wifi", "wifi", MoveCause.REQUESTED)]
    assert live.moves == 0


def test_a_move_that_fails_leaves_the_session_where_it_was(live: MobileSession) -> None:
    live.move(1, "lte")
    error = LinkUnavailable("lte", "refused")
    assert live.attempt_failed(1.5, 2, error) == [Abandon(2), MoveFailed("lte", error)]
    assert (live.state, live.link) == (SessionState.LIVE, "wifi")
    assert live.on_time(100) == []


def test_a_move_to_a_link_that_is_not_there_fails_at_once(live: MobileSession) -> None:
    (failed,) = live.move(1, "eth0")
    assert isinstance(failed, MoveFailed)
    assert live.state is SessionState.LIVE


def test_an_attempt_without_answer_ends_in_time_and_the_next_link_is_tried(live: MobileSession) -> None:
    live.links_changed(1, (), {})
    live.links_changed(2, ("wifi", "lte"), RTT)
    live.request_sent(2, 2)
    deadline = live.deadline
    assert deadline is not None
    assert deadline == pytest.approx(2 + 4 * 0.005 + 0.4)
    assert live.on_time(deadline) == [Abandon(2)]
    retry = live.deadline
    assert retry is not None
    assert live.on_time(retry) == [Attempt(3, "lte", reconnect=True)]


def test_an_answer_may_take_twice_as_long_each_time_that_none_came(live: MobileSession) -> None:
    """A proxy that many sessions ask at once answers some late, and never in time those that ask again as soon."""
    live.links_changed(0, ("lte",), RTT)
    live.leg_lost(0, 1)
    patience, asked = [], 0.0
    for generation in range(2, 7):
        live.request_sent(asked, generation)
        assert live.deadline is not None
        patience.append(live.deadline - asked)
        live.on_time(live.deadline)
        assert live.deadline is not None
        asked = live.deadline
        live.on_time(asked)
    assert patience == pytest.approx([0.6, 1.2, 2.4, 3.0, 3.0])
    live.request_sent(asked, 7)
    live.replied(asked, 7, OK)
    live.leg_lost(asked, 7)
    assert live.deadline == pytest.approx(asked + 0.6)


def test_retries_back_off_and_a_new_link_or_word_of_the_proxy_ends_the_waiting(live: MobileSession) -> None:
    live.links_changed(0, ("wifi",), RTT)
    live.leg_lost(0, 1)
    now, waits = 0.0, []
    for generation in range(2, 12):
        live.attempt_failed(now, generation, LinkUnavailable("wifi", "no answer"))
        assert live.deadline is not None
        waits.append(live.deadline - now)
        now = live.deadline
        assert live.on_time(now) == [Attempt(generation + 1, "wifi", reconnect=True)]
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.1)
    assert waits[-1] == pytest.approx(5)
    live.attempt_failed(now, 12, LinkUnavailable("wifi", "no answer"))
    assert live.links_changed(now, ("wifi", "lte"), RTT) == [Attempt(13, "wifi", reconnect=True)]
    assert live.retry(now) == []  # that is under way
    live.attempt_failed(now, 13, LinkUnavailable("wifi", "no answer"))
    assert live.retry(now) == [Attempt(14, "wifi", reconnect=True)]
    live.attempt_failed(now, 14, LinkUnavailable("wifi", "no answer"))
    assert live.deadline == pytest.approx(now + 0.1)  # and the next waiting is the first again


def test_the_refused_destination_ends_it(session: MobileSession) -> None:
    session.links_changed(0, ("wifi",), RTT)
    (ended,) = session.replied(0, 1, verdict(LegStatus.REFUSED, socks_reply=5))[-1:]
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, DestinationRefused)
    assert session.state is SessionState.ENDED
    assert session.deadline is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (LegStatus.UNKNOWN_SESSION, SessionEnded),
        (LegStatus.ENDED_RESET, SessionReset),
        (LegStatus.ENDED_EXPIRED, SessionEnded),
        (LegStatus.BAD_OFFSETS, SessionEnded),
    ],
)
def test_final_verdicts(live: MobileSession, status: LegStatus, kind: type[SessionEnded]) -> None:
    live.leg_lost(1, 1)
    effects = live.replied(1, 2, verdict(status))
    assert isinstance(effects[-1], Ended)
    assert isinstance(effects[-1].error, kind)


def test_an_orderly_end_is_no_error(live: MobileSession) -> None:
    live.leg_lost(1, 1)
    assert live.replied(1, 2, verdict(LegStatus.ENDED_FIN))[-1] == Ended(None)


@pytest.mark.parametrize("status", [LegStatus.BUSY, LegStatus.EXPIRED, LegStatus.REPLAYED, LegStatus.LIMIT])
def test_verdicts_that_invite_another_attempt(live: MobileSession, status: LegStatus) -> None:
    live.leg_lost(1, 1)
    assert live.replied(1, 2, verdict(status)) == [Abandon(2)]
    assert live.deadline is not None
    assert isinstance(live.on_time(live.deadline)[0], Attempt)


def test_a_stale_generation_is_overtaken(live: MobileSession) -> None:
    live.leg_lost(1, 1)
    live.replied(1, 2, verdict(LegStatus.STALE_GENERATION, generation=40))
    assert live.deadline is not None
    (attempt,) = live.on_time(live.deadline)
    assert isinstance(attempt, Attempt)
    assert attempt.generation == 41


def test_a_leg_of_somebody_else_is_displaced(live: MobileSession) -> None:
    assert live.foreign_leg(1, 1) == []
    assert live.foreign_leg(1, 7) == [Parked(1), Attempt(8, "wifi", reconnect=True)]


def test_an_ended_session_stays_ended(live: MobileSession) -> None:
    (ended,) = live.ended(EndReason.SERVER_RESET)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, SessionReset)
    assert live.ended(EndReason.CLOSED) == []
    assert live.links_changed(1, ("lte",), RTT) == []
    assert live.leg_lost(1, 1) == []
    assert isinstance(live.move(1, "lte")[0], MoveFailed)


def test_a_move_requested_without_a_leg_is_done_when_its_link_carries(live: MobileSession) -> None:
    live.links_changed(1, ("lte", "wifi"), RTT)
    live.leg_lost(1, 1)
    assert live.move(1, "wifi") == [Abandon(2), Attempt(3, "wifi", reconnect=True)]
    assert live.replied(1, 3, OK) == [Carried(3, "wifi", "wifi", MoveCause.REQUESTED)]


def test_a_handover_whose_old_leg_is_lost_becomes_a_takeover(live: MobileSession) -> None:
    live.move(1, "lte")
    live.request_sent(1, 2)
    assert live.leg_lost(1.01, 1) == [Parked(1), Abandon(2), Attempt(3, "lte", reconnect=True)]


def test_a_handover_that_the_proxy_cannot_make_becomes_a_takeover(live: MobileSession) -> None:
    live.move(1, "lte")
    live.request_sent(1, 2)
    effects = live.replied(1.05, 2, verdict(LegStatus.LEG_GONE))
    assert effects == [Abandon(2), Parked(1), Attempt(3, "lte", reconnect=True)]
    assert live.replied(1.1, 3, OK) == [Carried(3, "lte", "wifi", MoveCause.REQUESTED)]


def test_a_request_without_answer_makes_the_old_leg_doubtful(live: MobileSession) -> None:
    """The proxy may have accepted it: what the old leg's kernel acknowledges then proves nothing."""
    live.move(1, "lte")
    live.request_sent(1, 2)
    assert live.deadline is not None
    parked, abandon, failed = live.on_time(live.deadline)
    assert (parked, abandon) == (Parked(1), Abandon(2))
    assert isinstance(failed, MoveFailed)
    assert live.deadline is not None
    assert live.on_time(live.deadline) == [Attempt(3, "wifi", reconnect=True)]


def test_a_session_that_the_proxy_has_forgotten_goes_on_with_the_leg_it_has(live: MobileSession) -> None:
    """As after a crash of a proxy without a store that splices: nothing has touched the leg, nothing can replace it."""
    assert live.move(1, "lte") == [Attempt(2, "lte", reconnect=True, handover_from=1)]
    live.request_sent(1, 2)
    abandoned, failed = live.replied(1, 2, verdict(LegStatus.UNKNOWN_SESSION))
    assert abandoned == Abandon(2)
    assert isinstance(failed, MoveFailed)
    assert (live.state, live.link) == (SessionState.LIVE, "wifi")
    assert live.links_changed(2, ("lte", "wifi"), RTT) == []
    assert live.on_time(60) == []
    (refused,) = live.move(61, "lte")
    assert isinstance(refused, MoveFailed)
    parked, ended = live.leg_lost(62, 1)
    assert parked == Parked(1)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, SessionEnded)


def test_a_leg_is_kept_where_nobody_has_understood_the_request_for_another(live: MobileSession) -> None:
    live.move(1, "lte")
    live.request_sent(1, 2)
    live.disowned(2)
    effects = live.attempt_failed(1, 2, LinkUnavailable("lte", "the proxy was restarted"))
    assert [type(effect) for effect in effects] == [Abandon, MoveFailed]
    assert (live.state, live.link) == (SessionState.LIVE, "wifi")


def test_the_time_of_an_attempt_that_waits_for_its_turn_begins_with_that(live: MobileSession) -> None:
    live.links_changed(1, ("lte",), RTT)
    live.takes_turn(1, 2, waits=True)
    assert live.on_time(5) == []
    live.takes_turn(5, 1, waits=False)  # of an attempt that is over
    assert live.deadline == 1 + TURN_S
    live.takes_turn(5, 2, waits=False)
    assert live.deadline == pytest.approx(5.6)
    assert live.on_time(5.5) == []
    assert live.on_time(5.7) == [Abandon(2)]


def test_an_attempt_whose_turn_does_not_come_tries_another_link(live: MobileSession) -> None:
    live.links_changed(1, ("lte", "usb"), RTT)
    live.takes_turn(1, 2, waits=True)
    assert live.on_time(1 + TURN_S) == [Abandon(2)]
    assert live.deadline is not None
    assert live.on_time(live.deadline) == [Attempt(3, "usb", reconnect=True)]
