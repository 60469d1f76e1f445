"""What links do: delay, rate, faults, families, MTU; measured with ordinary sockets."""

from __future__ import annotations

import json

import pytest
from tests.lab.conftest import lost, run_client

from msocks_lab import CommandError, Direction, Lab, SetupError, measure, measurement_lock


@pytest.mark.parametrize(("link", "rtt_ms", "rate_mbit"), [("wifi", 5, 50), ("lte", 50, 20)])
def test_rtt_and_rate_are_what_they_are_said_to_be(lab: Lab, link: str, rtt_ms: float, rate_mbit: float):
    with measurement_lock():
        found = measure(lab, link, seconds=0.8)
    assert rtt_ms <= found.rtt_min_ms <= found.rtt_median_ms <= rtt_ms + 2
    assert found.loss_percent == 0
    assert found.down_mbit == pytest.approx(rate_mbit, rel=0.04)
    assert found.up_mbit == pytest.approx(rate_mbit, rel=0.04)


def test_a_fat_link_is_fast(lab: Lab):
    with measurement_lock():
        found = measure(lab, "fat")
    assert found.rtt_median_ms < 1.5
    assert found.down_mbit > 1000
    assert found.up_mbit > 1000


def test_properties_change_while_the_link_carries_traffic(lab: Lab):
    link = lab.link("wifi")
    with measurement_lock():
        link.set(rtt_ms=30, rate_mbit=8)
        slow = measure(lab, "wifi", seconds=0.8)
        link.set(Direction.UP, rate_mbit=24)
        link.set(Direction.DOWN, rate_mbit=80, delay_ms=0)
        uneven = measure(lab, "wifi", seconds=0.5)
    link.set(rtt_ms=5, rate_mbit=50)
    assert slow.rtt_median_ms == pytest.approx(31, abs=1.5)
    assert (slow.down_mbit, slow.up_mbit) == pytest.approx((8, 8), rel=0.05)
    assert uneven.rtt_median_ms == pytest.approx(16, abs=1.5)
    assert uneven.up_mbit == pytest.approx(24, rel=0.05)
    assert uneven.down_mbit == pytest.approx(80, rel=0.07)


def test_loss_duplicates_and_reordering_happen(lab: Lab):
    link = lab.link("wifi")
    before = link.emulator_counters()
    link.set(Direction.UP, loss_percent=30)
    link.set(Direction.DOWN, duplicate_percent=20, reorder_percent=20)
    try:
        missing = lost(lab, "wifi", count=300)
        result = run_client(lab, "--device", "wifi", "--download", "1000000")
    finally:
        link.set(Direction.UP, loss_percent=0)
        link.set(Direction.DOWN, duplicate_percent=0, reorder_percent=0)
    after = link.emulator_counters()
    assert 55 <= missing <= 125
    assert result["error"] == ""
    for side, counter in (("up", "dropped_loss"), ("down", "duplicated"), ("down", "reordered")):
        assert after[side][counter] - before[side][counter] > 20


@pytest.mark.parametrize(
    ("link", "reachable", "unreachable"), [("four", "server4", "server6"), ("six", "server6", "server4")]
)
def test_a_link_may_have_one_family_only(lab: Lab, link: str, reachable: str, unreachable: str):
    assert lost(lab, link, reachable) == 0
    assert len(lab.link(link).addresses) == 1
    found = json.loads(lab.mobile.run(["ip", "-json", "addr", "show", link]).stdout)
    families = {address["family"] for address in found[0]["addr_info"] if address["scope"] == "global"}
    assert families == {"inet" if link == "four" else "inet6"}
    # Without a route of that family the kernel either refuses or asks the link itself, where nobody answers.
    options = ["--device", link, "--echo", "1", "--udp", "--interval", "0", "--timeout", "0.2"]
    result = run_client(lab, *options, host=unreachable)
    assert result["error"] or result["lost"] == 1


def test_a_link_may_lose_one_family_and_regain_it(lab: Lab):
    link = lab.link("wifi")
    before = link.addresses
    link.lose_family(4)
    try:
        assert link.addresses == before[1:]
        assert lost(lab, "wifi", "server6") == 0
        result = run_client(lab, "--device", "wifi", "--download", "1", "--timeout", "0.3", host="server4")
        assert result["error"]
        with pytest.raises(CommandError, match="one IP version"):
            link.lose_family(6)
    finally:
        link.regain_family()
    assert link.addresses == before
    assert lost(lab, "wifi", "server4") == lost(lab, "wifi", "server6") == 0


def test_counters_tell_which_link_carried_the_bytes(lab: Lab):
    before = {link.name: link.counters() for link in lab.links}
    run_client(lab, "--device", "six", "--download", "1000000", "--upload", "500000", host="server6")
    spent = {link.name: link.counters().since(before[link.name]) for link in lab.links}
    assert 1_000_000 < spent["six"].bytes_down < 1_200_000
    assert 500_000 < spent["six"].bytes_up < 700_000
    assert all(spent[name].bytes_down < 5000 for name in spent if name != "six")


def test_routes_prefer_links_in_their_order(lab: Lab):
    for family in ("-4", "-6"):
        routes = json.loads(lab.mobile.run(["ip", family, "-json", "route", "show", "default"]).stdout)
        preferred = [route["dev"] for route in sorted(routes, key=lambda route: route["metric"])]
        assert preferred[:2] == ["wifi", "lte"]


def test_a_smaller_path_mtu_is_discovered(lab: Lab):
    link = lab.link("wifi")
    link.set(mtu=1300)
    before = link.emulator_counters()
    both_ways = ["--device", "wifi", "--upload", "300000", "--download", "300000"]
    try:
        result = run_client(lab, *both_ways, host="server4")
        again = run_client(lab, *both_ways, host="server6")
    finally:
        link.set(mtu=1500)
        lab.mobile.run(["ip", "route", "flush", "cache"])
        lab.mobile.run(["ip", "-6", "route", "flush", "cache"])
    after = link.emulator_counters()
    assert result["error"] == again["error"] == ""
    for side in ("up", "down"):
        packets = after[side]["delivered"] - before[side]["delivered"]
        assert (after[side]["delivered_bytes"] - before[side]["delivered_bytes"]) / packets < 1300


def test_accepted_connections_and_sockets_are_seen(lab: Lab):
    before = lab.server.accepted_connections()
    run_client(lab, "--download", "1000")
    run_client(lab, "--download", "1000", host="server6")
    assert lab.server.accepted_connections() == before + 2
    assert {"LISTEN"} <= {entry["state"] for entry in lab.server.tcp_sockets() if entry["local_port"] == 9000}


def test_what_does_not_exist_is_refused(lab: Lab):
    with pytest.raises(SetupError, match="no link 'umts'"):
        lab.link("umts")
    with pytest.raises(SetupError, match="no host 'moon'"):
        lab.host("moon")
    with pytest.raises(CommandError, match="fat is fat"):
        lab.link("fat").set(rate_mbit=5)
    with pytest.raises(SetupError, match="no emulator"):
        lab.link("fat").emulator_counters()
    with pytest.raises(CommandError, match="loss_percent is 200"):
        lab.link("wifi").set(loss_percent=200)
    assert lost(lab, "wifi") == 0
