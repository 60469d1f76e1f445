"""The handshake with the server is the mobile's: what the server measures by it is the whole path."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from tests.end_to_end.conftest import LTE
from tests.end_to_end.splice_fixtures import spliced_field


def test_a_server_that_believes_its_least_round_trip_is_not_starved() -> None:
    """BBR would send a seventh for ten seconds."""
    link = replace(LTE, rtt_ms=50, rate_mbit=20)
    with spliced_field(link) as field:
        field.lab.server.run(["sysctl", "-qw", "net.ipv4.tcp_congestion_control=bbr"])
        transfer = field.transfer("--download", "40000000")
        transfer.wait_for(100_000)
        before = transfer.received()
        time.sleep(2.5)
        rate_mbit = (transfer.received() - before) * 8 / 2.5 / 1e6
        sockets = field.lab.server.run(["ss", "-tinH", "state", "established", "sport", "= :7000"]).stdout
        least_ms = float(re.findall(r"minrtt:([\d.]+)", sockets)[0])
        field.carried()
        transfer.process.kill()
        transfer.process.wait()
    assert least_ms > 45
    assert rate_mbit > 12
