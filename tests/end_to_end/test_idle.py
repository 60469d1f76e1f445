"""A connection that nobody uses, over a link that costs money: it stays, and costs next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.end_to_end.conftest import LTE, Field
from tests.end_to_end.ends import join, read

IDLE_S = 280.0
COUNTED_S = 120.0
"""The end of that time: a path that carried something a moment ago is looked after more closely."""


@pytest.mark.long
@pytest.mark.timeout(400)
def test_an_idle_connection_outlives_the_nats_time_outs_and_costs_next_to_nothing(
    make_field: Callable[..., Field],
) -> None:
    """The hastiest of common NATs: TCP after two minutes, UDP after half a minute."""
    field = make_field(replace(LTE, ipv6=False, nat=True, nat_tcp_idle_s=120, nat_udp_idle_s=30))
    field.start_proxy()
    field.start_agent(policy="[policy.link.lte]\ncost = 1\n")
    lte = field.lab.link("lte")
    with join(field, is_spliced=field.datapath == "splice") as ends:
        ends.client.sendall(b"hello")
        assert read(ends.server, 5) == b"hello"
        time.sleep(IDLE_S - COUNTED_S)
        before = lte.counters()
        time.sleep(COUNTED_S)
        crossed = lte.counters().since(before)
        assert crossed.packets_up + crossed.packets_down < 40, crossed
        assert crossed.bytes_up + crossed.bytes_down < 5000, crossed
        began = time.monotonic()
        ends.server.sendall(b"still there?")
        assert read(ends.client, 12) == b"still there?"
        assert time.monotonic() - began < 0.5, "it had to be found again"
        (flow,) = field.flows()
        assert (flow["generation"], flow["moves"]) == (1, 0)
