"""Where a new leg begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.session.resume import ClientPosition, OffsetError, Resumption, StreamState, resume

CLIENT = ClientPosition(received=100, sends_from=40, up_fin=None, down_fin=None)
PROXY = StreamState(up_taken=50, up_fin=None, down_acknowledged=120, down_sent=190, down_available=200, down_fin=None)


def test_d_is_what_the_mobile_or_an_earlier_legs_ack_says_whichever_is_more() -> None:
    assert resume(CLIENT, PROXY) == Resumption(down_from=120, up_taken=50, up_from=40)
    assert resume(replace(CLIENT, received=150), PROXY).down_from == 150


@pytest.mark.parametrize(
    ("client", "proxy"),
    [
        (replace(CLIENT, received=201), PROXY),  # never sent
        (replace(CLIENT, sends_from=51), PROXY),  # bytes 50 would be missing
        (replace(CLIENT, up_fin=39), PROXY),  # the end before the beginning
        (replace(CLIENT, up_fin=49), PROXY),  # the end before what has arrived
        (CLIENT, replace(PROXY, up_fin=50)),  # an end taken back
        (replace(CLIENT, up_fin=60), replace(PROXY, up_fin=50)),  # another end
        (replace(CLIENT, down_fin=100), PROXY),  # a FIN that the server never sent
        (replace(CLIENT, down_fin=100), replace(PROXY, down_fin=200)),
    ],
)
def test_offsets_that_cannot_be_true_are_refused(client: ClientPosition, proxy: StreamState) -> None:
    with pytest.raises(OffsetError):
        resume(client, proxy)


def test_a_handover_begins_where_what_was_sent_on_the_old_leg_ends() -> None:
    client = replace(CLIENT, sends_from=80, handover=True)
    assert resume(client, PROXY) == Resumption(down_from=190, up_taken=50, up_from=80)
    # The present leg may still be repeating what an earlier one had brought.
    assert resume(replace(client, sends_from=49), PROXY) == Resumption(down_from=190, up_taken=50, up_from=49)


@pytest.mark.parametrize(
    ("sends_from", "up_from"),
    [
        (50, 50),
        (45, 45),  # a part of it has arrived
        (40, 40),  # all of it, and just that
        (39, 40),  # more than that: the leg goes on at 50, and ten bytes before it are repeated
        (51, 40),  # it does not join what has arrived, and takes the place of what has
        (500, 40),
    ],
)
def test_a_first_flight_counts_where_it_joins_and_else_takes_the_place_of_what_has_arrived(
    sends_from: int, up_from: int
) -> None:
    client = replace(CLIENT, sends_from=sends_from, first_flight=10)
    assert resume(client, PROXY) == Resumption(down_from=120, up_taken=50, up_from=up_from)


def test_a_first_flight_of_more_than_has_arrived_cannot_be_thrown_away() -> None:
    assert resume(replace(CLIENT, sends_from=60, first_flight=50), PROXY).up_from == 0
    with pytest.raises(OffsetError, match="first flight"):
        resume(replace(CLIENT, sends_from=60, first_flight=51), PROXY)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_what_is_granted_can_be_served(received: int, sends_from: int, taken: int, acked: int, more: int) -> None:
    state = StreamState(taken, None, acked, acked + more, acked + more, None)
    try:
        granted = resume(ClientPosition(received, sends_from, None, None), state)
    except OffsetError:
        assert received > state.down_available or sends_from > taken
    else:
        assert acked <= granted.down_from <= state.down_available
        assert granted.down_from >= received
        assert sends_from <= granted.up_taken
