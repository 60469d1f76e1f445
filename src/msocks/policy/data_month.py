"""Months as data plans count them."""

from __future__ import annotations

from datetime import date


def month_begins(today: date, cap_day: int) -> date:
    """The first day of the plan's month that holds `today`; `cap_day` is the day on which months begin, 1 to 28."""
    if today.day >= cap_day:
        return today.replace(day=cap_day)
    if today.month == 1:
        return date(today.year - 1, 12, cap_day)
    return date(today.year, today.month - 1, cap_day)
