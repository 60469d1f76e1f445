"""Bytes held by many, out of one limit."""

from __future__ import annotations

import pytest

from msocks.session.byte_budget import SHARE_BYTES, ByteBudget
from msocks.session.retention import Retention


def test_what_is_taken_is_not_left() -> None:
    budget = ByteBudget(100_000)
    budget.take(40_000)
    assert budget.left == 60_000
    budget.give_back(10_000)
    assert (budget.held, budget.left) == (30_000, 70_000)


def test_both_limits_of_nested_budgets_hold() -> None:
    whole = ByteBudget(100)
    one, other = ByteBudget(80, whole), ByteBudget(80, whole)
    one.take(70)
    assert one.left == 10
    assert other.left == 30
    other.take(30)
    assert (one.left, other.left, whole.held) == (0, 0, 100)
    one.give_back(70)
    assert (whole.held, other.left) == (30, 50)


def test_everybody_has_a_share_whatever_the_others_do() -> None:
    budget = ByteBudget(1_000_000)
    budget.take(2_000_000)
    assert budget.left == 0
    assert budget.room_for(0) == SHARE_BYTES
    assert budget.room_for(SHARE_BYTES - 1) == 1
    assert budget.room_for(SHARE_BYTES) == 0


def test_a_budget_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        ByteBudget(0)


def test_a_retention_counts_what_it_holds() -> None:
    budget = ByteBudget(1000)
    retention = Retention(budget)
    retention.append(bytes(300))
    retention.append(bytes(200))
    assert budget.held == 500
    retention.mark_sent(500)
    retention.release(350)
    retention.release(350)
    retention.release(100)
    retention.rewind(350)
    assert budget.held == retention.retained == 150
    retention.discard()
    assert budget.held == retention.retained == 0
