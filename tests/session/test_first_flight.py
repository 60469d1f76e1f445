"""What a leg begins with that nobody has asked for, and where it goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks.session.first_flight import FirstFlight, guess

FLIGHT = FirstFlight(1_000, 100)


@pytest.mark.parametrize("arrived", [1_000, 1_001, 1_099, 1_100])
def test_a_flight_that_joins_what_has_arrived_counts_from_its_beginning(arrived: int) -> None:
    assert FLIGHT.leg_begins_at(arrived) == 1_000


@pytest.mark.parametrize(("arrived", "begins"), [(999, 899), (100, 0), (99, -1), (1_101, 1_001), (5_000, 4_900)])
def test_any_other_counts_as_bytes_that_have_arrived(arrived: int, begins: int) -> None:
    assert FLIGHT.leg_begins_at(arrived) == begins


@given(st.binary(min_size=1, max_size=60), st.data())
def test_with_what_follows_the_stream_is_whole_wherever_the_flight_began(stream: bytes, data: st.DataObject) -> None:
    arrived = data.draw(st.integers(0, len(stream)))
    begins_at = data.draw(st.integers(0, len(stream) - 1))
    length = data.draw(st.integers(1, len(stream) - begins_at))
    flight = FirstFlight(begins_at, length)
    leg_begins_at = flight.leg_begins_at(arrived)
    on_the_leg = stream[begins_at : flight.end] + stream[leg_begins_at + length :]
    assert leg_begins_at <= arrived
    assert stream[:arrived] + on_the_leg[arrived - leg_begins_at :] == stream


@pytest.mark.parametrize(
    ("bytes_per_second", "unheard_s", "begins_at"),
    [
        (0.0, 0.005, 500_000),  # nothing is known: what was not acknowledged
        (6e6, 0.0, 500_000),
        (6e6, 0.005, 530_000),
        (6e6, 10.0, 888_000),  # no further than what was sent
    ],
)
def test_the_guess_is_what_arrived_in_the_time_whose_acks_are_lost(
    bytes_per_second: float, unheard_s: float, begins_at: int
) -> None:
    assert guess(500_000, 900_000, bytes_per_second, unheard_s, 12_000) == FirstFlight(begins_at, 12_000)


@pytest.mark.parametrize(
    ("acknowledged", "sent", "length"),
    [
        (500_000, 512_000, 12_000),  # all of it fits into one flight: there is nothing to be guessed
        (11_999, 900_000, 12_000),  # it could not be taken for bytes that have arrived
        (500_000, 900_000, 0),
        (500_000, 900_000, -1_400),
    ],
)
def test_no_guess_where_it_gains_nothing_or_cannot_be_mended(acknowledged: int, sent: int, length: int) -> None:
    assert guess(acknowledged, sent, 6e6, 0.005, length) is None


@given(
    st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 1e9), st.floats(0, 1), st.integers(0, 10**5), st.data()
)
def test_a_guess_lies_within_what_was_sent_and_can_always_be_mended(
    acknowledged: int, unacknowledged: int, rate: float, unheard_s: float, length: int, data: st.DataObject
) -> None:
    sent = acknowledged + unacknowledged
    flight = guess(acknowledged, sent, rate, unheard_s, length)
    if flight is not None:
        assert acknowledged <= flight.begins_at < flight.end <= sent
        arrived = data.draw(st.integers(acknowledged, sent))
        assert 0 <= flight.leg_begins_at(arrived) <= arrived
