"""Whether a middlebox ACKs in the proxy's place, from the round-trip times of TCP and of probes."""

from __future__ import annotations

import pytest

from msocks.session.split_path import NEEDED, SplitPath


def path(tcp_s: float, *probes_s: float) -> SplitPath:
    made = SplitPath()
    made.on_tcp(tcp_s)
    for rtt_s in probes_s:
        made.on_whole(rtt_s)
    return made


@pytest.mark.parametrize(
    ("tcp_s", "whole_s", "split"),
    [
        (0.0005, 0.600, True),  # a satellite's terminal in the same room
        (0.0005, 0.050, True),
        (0.010, 0.050, True),  # behind a Wi-Fi
        (0.050, 0.050, False),
        (0.050, 0.090, False),  # a proxy whose program is slow
        (0.0001, 0.015, False),  # a busy proxy in the same room
        (0.600, 0.620, False),
    ],
)
def test_a_path_is_split_where_tcp_is_answered_long_before_any_probe(tcp_s: float, whole_s: float, split: bool):
    assert path(tcp_s, *[whole_s] * NEEDED).is_split is split


def test_what_a_full_queue_adds_is_no_evidence():
    judged = SplitPath()
    judged.on_tcp(0.050)
    for _ in range(2 * NEEDED):
        judged.on_whole(0.350, busy_s=0.340)
    assert not judged.is_split
    # With a middlebox in front of the queue TCP would not notice it; behind it, it leaves the rest.
    for busy_s in (0.006, 0.100):
        judged = SplitPath()
        judged.on_tcp(0.005)
        for _ in range(NEEDED):
            judged.on_whole(0.350, busy_s)
        assert judged.is_split


def test_a_few_slow_answers_are_no_evidence():
    doubtful = path(0.0005, *[0.3] * (NEEDED - 1))
    assert (doubtful.is_split, doubtful.is_doubtful) == (False, True)
    assert path(0.0005).is_doubtful
    assert not path(0.0005, 0.001).is_doubtful


def test_one_quick_answer_takes_it_back_for_good():
    judged = path(0.0005, *[0.3] * NEEDED)
    verdicts = [judged.is_split]
    for rtt_s in (0.002, *[0.3] * 100):  # a queue has filled
        judged.on_whole(rtt_s)
        verdicts.append(judged.is_split)
    assert verdicts == [True] + [False] * 101


@pytest.mark.parametrize("tcp_s", [0.0, 4294.967295])
def test_tcp_that_has_measured_nothing_says_nothing(tcp_s: float):
    assert not path(tcp_s, *[0.3] * NEEDED).is_split


def test_who_has_heard_nothing_of_tcp_cannot_tell():
    judged = SplitPath()
    for _ in range(NEEDED):
        judged.on_whole(0.3)
    assert not judged.is_split


def test_what_the_last_network_was_this_one_is_assumed_to_be_until_it_shows():
    judged = SplitPath(assumed=True)
    verdicts = [judged.is_split]
    judged.on_tcp(0.0005)
    judged.on_whole(0.3)
    verdicts.append(judged.is_split)
    judged.on_whole(0.002)
    verdicts.append(judged.is_split)
    assert verdicts == [True, True, False]
