"""Connections of ordinary programs outlive every kind of move; judged by the lab, byte by byte."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.end_to_end.conftest import LTE, WIFI, Field, Transfer

from msocks_lab import CutMode, Direction

MB = 1_000_000
BOTH_WAYS = ("--download", str(8 * MB), "--upload", str(4 * MB))
AT = 3 * MB // 2
"""Received before the network changes: both directions are at full speed by then."""
# Where the agent does the work, one datapath says it all, and the other is part of `make soak`.
mostly_spliced = pytest.mark.parametrize(
    "datapath", ["splice", pytest.param("relay", marks=pytest.mark.long)], indirect=True
)


def passed_by(transfer: Transfer, field: Field) -> None:
    """After the network has changed: every byte comes right, the server saw one connection, and what carried it is what
    was meant to.
    """
    assert transfer.process.poll() is None, "it had ended before the network changed"
    result = transfer.result()
    assert result["error"] == "", result
    assert field.accepted_connections() == 1
    field.carried()


def test_an_explicit_move_takes_both_directions_along_and_leaves_other_flows(field: Field) -> None:
    staying = field.transfer("--download", str(3 * MB), "--rate", "500000")
    staying.wait_for(100_000)
    moving = field.transfer("--download", str(7 * MB), "--rate", "1500000")
    moving.wait_for(500_000)
    flow = max(field.flows(), key=lambda flow: flow["since"])
    assert (flow["link"], flow["state"], flow["datapath"]) == ("wifi", "live", field.datapath)
    assert field.carrying("lte") < 50_000
    assert field.msocks("move", flow["id"], "--to", "lte").returncode == 0
    before = moving.received(), staying.received()
    wifi, lte = field.carried_by("wifi", "lte")
    assert 300_000 < wifi < 900_000  # the flow that stayed
    assert lte > 900_000
    assert moving.received() > before[0]
    assert staying.received() > before[1]
    for transfer in (staying, moving):
        assert transfer.result()["error"] == ""
    assert field.accepted_connections() == 2


def connections_over(field: Field, link: str) -> int:
    """Established TCP connections of the mobile from the addresses of a link, to the proxy."""
    text = field.lab.mobile.run(["ss", "--tcp", "--no-header", "--numeric", "state", "established"]).stdout
    ends = [line.split()[2] for line in text.splitlines()]
    sources = tuple(f"[{each}]:" if ":" in each else f"{each}:" for each in field.lab.link(link).addresses)
    return sum(end.startswith(sources) or end.partition("%")[0] + ":" in sources for end in ends)


@mostly_spliced
def test_a_spare_leg_stands_over_the_other_link_while_there_is_a_flow(make_field: Callable[..., Field]) -> None:
    field = make_field()
    field.start_proxy()
    for policy, spares in (("", 1), ("[agent]\nspare_legs = false\n", 0), ("[policy.link.lte]\ncost = 1.0\n", 0)):
        agent = field.start_agent("wifi", "lte", policy=policy)
        field.wait_until(lambda: connections_over(field, "lte") == 1)  # the control channel
        transfer = field.transfer("--download", str(MB // 5), "--rate", "200000")
        transfer.wait_for(20_000)
        time.sleep(0.4)
        assert connections_over(field, "lte") == 1 + spares
        assert transfer.result()["error"] == ""
        field.wait_until(lambda: connections_over(field, "lte") == 1)
        agent.stop()
        field.wait_until(lambda: connections_over(field, "lte") == 0)


@pytest.mark.long
@mostly_spliced
def test_what_a_link_loses_is_told_by_what_a_flow_had_to_send_again(make_field: Callable[..., Field]) -> None:
    field = make_field()
    field.start_proxy()
    field.start_agent("wifi", "lte")
    field.lab.link("wifi").set(Direction.UP, loss_percent=4.0)
    transfer = field.transfer("--upload", str(4 * MB))
    shares = {}

    def is_told() -> bool:
        links = json.loads(field.msocks("links", "--json").stdout)["links"]
        shares.update({link["name"]: link["loss_percent"] for link in links})
        return bool(shares["wifi"] > 2)

    field.wait_until(is_told)
    assert shares["wifi"] < 8
    assert shares["lte"] < 1
    assert transfer.result()["error"] == ""


@pytest.mark.parametrize("mode", list(CutMode))
def test_a_link_that_goes_away(field: Field, mode: CutMode) -> None:
    transfer = field.transfer(*BOTH_WAYS)
    transfer.wait_for(AT)
    field.lab.link("wifi").cut(mode)
    passed_by(transfer, field)


@pytest.mark.parametrize("datapath", ["relay"], indirect=True)  # the splice's legs do not end at the proxy
@pytest.mark.parametrize("links", [1, 2])
def test_connections_whose_end_only_the_proxy_notices(make_field: Callable[..., Field], links: int) -> None:
    """A firewall that has lost its state answers who sends; a mobile node that only receives hears nothing of it.

    Over another link the proxy can say so; else the mobile node has to ask.
    """
    field = make_field(*(WIFI, LTE)[:links])
    field.start_proxy()
    field.start_agent()
    transfer = field.transfer("--download", str(10 * MB))
    transfer.wait_for(AT)
    wifi = field.lab.link("wifi")
    wifi.cut(CutMode.SILENT)
    time.sleep(0.1)  # until the last ACK has left, and is lost
    killed = [field.lab.proxy.run(["ss", "-K", "-n", "-t", "dst", f"[{each}]"]).stdout for each in wifi.addresses]
    wifi.restore()
    assert "".join(killed).count("ESTAB") == 2, f"not a leg and a control channel: {killed}"
    began = time.monotonic()
    passed_by(transfer, field)
    assert time.monotonic() - began < 12


@mostly_spliced
def test_without_any_link_it_waits(field: Field) -> None:
    transfer = field.transfer(*BOTH_WAYS)
    transfer.wait_for(AT)
    field.lab.link("wifi").cut(CutMode.CARRIER)
    field.lab.link("lte").cut(CutMode.CARRIER)
    field.wait_until(lambda: field.flows()[0]["state"] == "parked")
    time.sleep(2)
    field.lab.link("lte").restore()
    passed_by(transfer, field)


@mostly_spliced
def test_it_goes_back_to_the_preferred_link(field: Field) -> None:
    transfer = field.transfer("--download", str(30 * MB), "--rate", "1500000")
    transfer.wait_for(MB)
    field.lab.link("wifi").cut(CutMode.CARRIER)
    field.wait_until(lambda: field.carrying("lte", 0.3) > 200_000)
    field.lab.link("wifi").restore()
    field.wait_until(lambda: field.carrying("wifi", 0.3) > 200_000)
    assert field.carrying("lte") < 100_000
    transfer.process.stop()


@mostly_spliced
def test_from_an_ipv4_only_link_to_an_ipv6_only_link_and_back(make_field: Callable[..., Field]) -> None:
    field = make_field(replace(WIFI, ipv6=False, nat=True), replace(LTE, ipv4=False))
    field.start_proxy()
    field.start_agent("wifi", "lte")
    transfer = field.transfer("--download", str(10 * MB), "--upload", str(4 * MB), "--rate", str(2 * MB))
    transfer.wait_for(MB)
    field.msocks("move", "all", "--to", "lte")
    transfer.wait_for(transfer.received() + MB)
    field.msocks("move", "all", "--to", "wifi")
    passed_by(transfer, field)


@mostly_spliced
def test_a_nat_that_forgets_its_mappings(make_field: Callable[..., Field]) -> None:
    field = make_field(replace(WIFI, ipv6=False, nat=True))
    field.start_proxy()
    field.start_agent()
    transfer = field.transfer(*BOTH_WAYS)
    transfer.wait_for(AT)
    field.lab.link("wifi").rebind_nat()
    passed_by(transfer, field)


@mostly_spliced
def test_a_new_address_on_the_same_interface(make_field: Callable[..., Field]) -> None:
    field = make_field(WIFI)
    field.start_proxy()
    field.start_agent()
    transfer = field.transfer(*BOTH_WAYS)
    transfer.wait_for(AT)
    field.lab.link("wifi").readdress()
    passed_by(transfer, field)


@mostly_spliced
def test_an_agent_that_starts_offline(make_field: Callable[..., Field]) -> None:
    field = make_field(replace(WIFI, attached=False))
    field.start_agent()
    transfer = field.transfer("--download", str(MB), "--upload", str(MB))
    field.wait_until(lambda: [flow["state"] for flow in field.flows()] == ["connecting"])
    field.start_proxy()
    field.lab.link("wifi").attach()
    passed_by(transfer, field)


@mostly_spliced
def test_a_link_that_is_lost_in_the_middle_of_connect(make_field: Callable[..., Field]) -> None:
    slow = replace(WIFI, rtt_ms=600)
    field = make_field(slow, LTE)
    field.start_proxy()
    field.start_agent("wifi", "lte")
    field.wait_until(lambda: "up" in field.msocks("links").stdout)
    time.sleep(2)  # control channels over both links
    transfer = field.transfer("--download", str(2 * MB), "--upload", str(MB))
    time.sleep(0.9)  # the leg's handshake is done, its request is on the way, the reply is not back
    field.lab.link("wifi").cut(CutMode.CARRIER)
    passed_by(transfer, field)


def test_moves_at_random_moments_lose_nothing(field: Field) -> None:
    transfers = [field.transfer("--download", str(4 * MB), "--upload", str(2 * MB)) for _ in range(4)]
    for transfer in transfers:
        transfer.wait_for(100_000)
    for turn in range(10):
        field.msocks("move", "all", "--to", ("lte", "wifi")[turn % 2], check=False)
        time.sleep(0.05 * turn)
    for transfer in transfers:
        assert transfer.result()["error"] == ""
    assert field.accepted_connections() == 4
    field.carried()


@mostly_spliced
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_half_closed_connection_moves_like_any_other(field: Field, who: str) -> None:
    transfer = field.transfer("--download", str(5 * MB), "--upload", str(2 * MB), "--half-close", who)
    transfer.wait_for(MB)
    field.lab.link("wifi").cut(CutMode.CARRIER)
    passed_by(transfer, field)


def test_a_reset_of_the_server_reaches_the_program(field: Field) -> None:
    transfer = field.transfer("--download", str(8 * MB), "--abort-after", str(2 * MB))
    result = transfer.result()
    assert "ConnectionResetError" in result["error"]


@pytest.mark.parametrize("datapath", ["relay"], indirect=True)
def test_a_restarted_relay_proxy_ends_its_sessions_loudly_and_serves_new_ones(field: Field) -> None:
    field.transfer("--download", "1000").result()
    transfer = field.transfer("--download", str(20 * MB))
    transfer.wait_for(MB)
    field.kill_proxy()
    field.start_proxy()
    result = transfer.result()
    assert "ConnectionResetError" in result["error"]  # never a clean end: bytes are missing
    again = field.transfer("--download", str(MB))
    assert again.result()["error"] == ""
