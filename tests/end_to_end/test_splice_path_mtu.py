"""A path of 1400 bytes and one of 1500, in any order, with what routers say of it and without."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests.end_to_end.conftest import Field
from tests.end_to_end.splice_fixtures import spliced_field

from msocks_lab import LinkConfig

MB = 1_000_000
SOME = str(3 * MB)
WIDE = LinkConfig("wide", rtt_ms=4, rate_mbit=80)
# The mobile's interface says so, as a modem's does; or only a router knows.
NARROW = LinkConfig("narrow", rtt_ms=8, rate_mbit=80, mtu=1400)
SECRETLY_NARROW = replace(NARROW, interface_mtu=1500)
SILENT_ROUTERS = """
table inet silence {
    chain output {
        type filter hook output priority filter; policy accept;
        icmp type destination-unreachable drop
        icmpv6 type packet-too-big drop
    }
}
"""
SMALL_SEGMENTS = """
table inet clamp {
    chain output {
        type filter hook output priority mangle; policy accept;
        tcp flags syn tcp option maxseg size set 1000
    }
}
"""


def silence(field: Field) -> None:
    """No router tells of packets that are too big."""
    for host in field.lab.hosts:
        if host == "core" or host.startswith("radio-"):
            field.lab.host(host).run(["nft", "-f", "-"], input=SILENT_ROUTERS)


@pytest.mark.parametrize(
    ("first", "narrow", "icmp", "version"),
    [
        pytest.param("wide", NARROW, "icmp", 4, id="wide first, known", marks=pytest.mark.long),
        pytest.param("wide", NARROW, "filtered", 6, id="wide first, known, filtered"),
        pytest.param("narrow", NARROW, "filtered", 4, id="narrow first, known, filtered", marks=pytest.mark.long),
        pytest.param("wide", SECRETLY_NARROW, "icmp", 6, id="wide first, secret", marks=pytest.mark.long),
        pytest.param("narrow", SECRETLY_NARROW, "icmp", 4, id="narrow first, secret"),
    ],
)
def test_paths_of_different_widths(first: str, narrow: LinkConfig, icmp: str, version: int) -> None:
    links = of_version(version, WIDE, narrow)
    if first == "narrow":
        links.reverse()
    with spliced_field(*links) as field:
        if icmp == "filtered":
            silence(field)
        transfer = field.transfer("--download", SOME, "--upload", SOME, "--rate", str(2 * MB))
        transfer.wait_for(MB // 5)
        for link in (links[1].name, links[0].name):
            assert field.msocks("move", "all", "--to", link).returncode == 0
            transfer.wait_for(transfer.received() + MB // 5, timeout=10)
        assert transfer.result()["error"] == ""
        # The server was told of the narrow path, and announces a smaller MSS from now on; also to the next process.
        if icmp == "icmp":
            field.kill_proxy()
            field.start_proxy("--open")
        assert field.transfer("--download", "1000", "--upload", "1000").result()["error"] == ""
        field.carried()


def test_a_server_that_takes_only_small_segments_is_relayed_and_its_sessions_move() -> None:
    links = of_version(4, WIDE, NARROW)
    with spliced_field(*links) as field:
        field.lab.server.run(["nft", "-f", "-"], input=SMALL_SEGMENTS)
        transfer = field.transfer("--download", SOME, "--upload", SOME, "--rate", str(2 * MB))
        for link in ("narrow", "wide"):
            transfer.wait_for(transfer.received() + MB // 5, timeout=10)
            assert field.msocks("move", "all", "--to", link).returncode == 0
        assert transfer.result()["error"] == ""
        assert [(flow["datapath"], flow["datapath_reason"]) for flow in field.flows()] == [("relay", "path-mtu")]


@pytest.mark.long
def test_a_session_comes_back_from_a_path_that_swallows_large_packets() -> None:
    """Such a path carries no TCP that does not probe for it (RFC 4821), with a proxy or without; leaving it helps."""
    links = of_version(4, WIDE, SECRETLY_NARROW)
    with spliced_field(*links) as field:
        silence(field)
        transfer = field.transfer("--download", SOME, "--upload", SOME, "--rate", str(2 * MB))
        transfer.wait_for(MB // 5)
        field.msocks("move", "all", "--to", "narrow")
        time.sleep(1.5)
        field.msocks("move", "all", "--to", "wide")
        assert transfer.result()["error"] == ""
        field.carried()


def of_version(version: int, *links: LinkConfig) -> list[LinkConfig]:
    """The links, with one version of IP alone."""
    return [replace(link, ipv4=version == 4, ipv6=version == 6) for link in links]


@pytest.mark.long
def test_a_server_that_probes_finds_the_width_that_nobody_tells() -> None:
    """RFC 4821, as Linux has it, works through the splice: it is the sender who probes, and its ACKs are end to end."""
    links = of_version(4, WIDE, SECRETLY_NARROW)
    with spliced_field(*links) as field:
        silence(field)
        field.lab.server.run(["sysctl", "-w", "net.ipv4.tcp_mtu_probing=1"])
        transfer = field.transfer("--download", SOME, "--rate", str(2 * MB))
        transfer.wait_for(MB // 2)
        assert field.msocks("move", "all", "--to", "narrow").returncode == 0
        assert transfer.result(60)["error"] == ""
        field.carried()
