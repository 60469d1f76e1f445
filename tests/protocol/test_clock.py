from __future__ import annotations

import pytest

from msocks.protocol.clock import LEG_LIFETIME_MS, ProxyClock


def test_only_differences_of_the_local_clock_count():
    for local_s in (0.0, 1e9):
        clock = ProxyClock(5_000, local_s)
        assert clock.now_ms(local_s) == 5_000
        assert clock.now_ms(local_s + 1.5) == 6_500
        assert clock.expiry_ms(local_s + 1.5) == 6_500 + LEG_LIFETIME_MS == 36_500
        assert clock.expiry_ms(local_s, lifetime_ms=10) == 5_010


def test_the_clock_never_runs_ahead_and_never_back():
    clock = ProxyClock(5_000, 10.0)
    assert clock.now_ms(10.0009) == 5_000
    assert clock.now_ms(9.0) == 5_000


def test_a_clock_is_a_64_bit_number():
    with pytest.raises(ValueError, match="clock"):
        ProxyClock(-1, 0.0)
