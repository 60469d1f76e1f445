"""What a path loses, as probes and legs tell."""

from __future__ import annotations

import random

import pytest

from msocks.session.path_loss import PathLoss


def test_nothing_is_lost_as_long_as_nothing_is_known() -> None:
    loss = PathLoss()
    loss.on_sent(0, 0)
    assert loss.share == 0
    assert loss.misses(1e-7) == 1


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_probes_tell_about_how_many_are_lost(share: float) -> None:
    chance, loss, seen = random.Random(1), PathLoss(), []
    for _ in range(5000):
        loss.on_probe(lost=chance.random() < share)
        seen.append(loss.share)
    assert sum(seen[500:]) / len(seen[500:]) == pytest.approx(share, rel=0.2)


def test_legs_tell_by_what_they_send_again_and_much_counts_more_than_little() -> None:
    loss = PathLoss()
    for _ in range(20):
        loss.on_sent(1_400_000, 28_000)
    assert loss.share == pytest.approx(0.02, rel=0.01)
    loss.on_sent(1_400, 1_400)
    assert loss.share < 0.022
    for _ in range(20):
        loss.on_sent(1_400_000, 0)
    assert loss.share < 0.0001


def test_the_worse_of_both_counts_and_no_leg_loses_more_than_all() -> None:
    loss = PathLoss()
    loss.on_probe(lost=True)
    loss.on_sent(1_400, 0)
    assert loss.share == pytest.approx(1 / 32)
    loss.on_sent(10_000_000, 20_000_000)
    assert 0.99 < loss.share <= 1


@pytest.mark.parametrize(("lost", "misses"), [(0.0005, 1), (0.01, 4), (0.09, 7), (0.7, 24)])
def test_so_many_in_a_row_are_no_chance(lost: float, misses: int) -> None:
    loss = PathLoss()
    for _ in range(20):
        loss.on_sent(14_000_000, int(14_000_000 * lost))
    assert loss.misses(1e-7) == misses
