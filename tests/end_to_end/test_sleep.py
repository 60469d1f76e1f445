"""An agent that did not run for minutes, as when its computer sleeps: what it knew of its links holds no more."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.end_to_end.conftest import LTE, WIFI, Field
from tests.end_to_end.ends import Ends, join, read

from msocks_lab import CutMode, Link

STOPPED_S = 125.0
AWAKE_S = 3.0
"""No timer of TCP's is so short after minutes: neither the server's, nor a keep-alive's."""
HOTEL = replace(WIFI, ipv6=False, nat=True, nat_tcp_idle_s=60, nat_udp_idle_s=30)
MEANWHILE: dict[str, Callable[[Link], object]] = {
    "its NAT forgets": lambda link: None,
    "it falls silent": lambda link: link.cut(CutMode.SILENT),
    "it is gone": lambda link: link.cut(CutMode.CARRIER),
    "it has another address": lambda link: link.readdress(),
}
SAID = b"said in its sleep"


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("datapath", ["splice", "relay"], indirect=True)
def test_an_agent_that_was_stopped_for_minutes_goes_on_at_once(make_field: Callable[..., Field]) -> None:
    sleepers: list[tuple[str, Field, Ends]] = []
    took_s: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        for what in MEANWHILE:
            field = make_field(HOTEL, LTE)
            field.start_proxy()
            field.start_agent("wifi", "lte")
            ends = stack.enter_context(join(field, is_spliced=field.datapath == "splice"))
            ends.client.sendall(b"good night")
            assert read(ends.server, 10) == b"good night"
            assert field.flows()[0]["link"] == "wifi"
            sleepers.append((what, field, ends))
        for what, field, _ in sleepers:
            assert field.agent is not None
            field.agent.send_signal(signal.SIGSTOP)
            MEANWHILE[what](field.lab.link("wifi"))
        time.sleep(STOPPED_S / 2)
        for _, _, ends in sleepers:
            ends.server.sendall(SAID)
        time.sleep(STOPPED_S / 2)
        for what, field, ends in sleepers:
            assert field.agent is not None
            began = time.monotonic()
            field.agent.send_signal(signal.SIGCONT)
            ends.client.sendall(b"good morning")
            assert read(ends.client, len(SAID)) == SAID
            assert read(ends.server, 12) == b"good morning"
            took_s[what] = time.monotonic() - began
            assert field.accepted_connections() == 1
    assert max(took_s.values()) < AWAKE_S, took_s
