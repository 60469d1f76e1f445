"""Links that go away in different ways, and come back."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.lab.conftest import PORT, lost

from msocks_lab import ArrivalMeter, CommandError, CutMode, Direction, Lab
from msocks_lab.process import python_argv


def interface(lab: Lab, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(lab.mobile.run(["ip", "-json", "addr", "show", name]).stdout)
    return found[0]


def default_routes(lab: Lab, name: str) -> set[str]:
    """The families ("-4", "-6") of usable default routes over a link."""
    usable = set()
    for family in ("-4", "-6"):
        routes = json.loads(lab.mobile.run(["ip", family, "-json", "route", "show", "default", "dev", name]).stdout)
        if any("linkdown" not in route.get("flags", []) for route in routes):
            usable.add(family)
    return usable


@pytest.mark.parametrize("link", ["wifi", "fat"])
def test_a_silent_cut_is_seen_by_nothing_but_silence(lab: Lab, link: str):
    target = lab.link(link)
    before = interface(lab, link)
    target.cut(CutMode.SILENT)
    assert interface(lab, link) == before
    assert default_routes(lab, link) == {"-4", "-6"}
    assert lost(lab, link, count=5) == 5
    assert target.describe()["state"] == "cut (silent)"
    target.restore()
    assert lost(lab, link) == 0
    assert lost(lab, link, "server6") == 0


@pytest.mark.parametrize("link", ["wifi", "lte", "fat", "six"])
@pytest.mark.parametrize("mode", [CutMode.CARRIER, CutMode.ADMIN])
def test_an_interface_goes_and_all_it_had_is_back_with_it(lab: Lab, link: str, mode: CutMode):
    target = lab.link(link)
    addresses, routes = target.addresses, default_routes(lab, link)
    target.cut(mode)
    seen = interface(lab, link)
    assert "LOWER_UP" not in seen["flags"]
    assert ("UP" in seen["flags"]) == (mode is CutMode.CARRIER)
    assert default_routes(lab, link) == set()
    target.restore()
    seen = interface(lab, link)
    assert {"UP", "LOWER_UP"} <= set(seen["flags"])
    assert {item["local"] for item in seen["addr_info"] if item["scope"] == "global"} == set(addresses)
    assert default_routes(lab, link) == routes
    assert lost(lab, link, "server6" if link == "six" else "server4") == 0


def test_events_come_from_the_mobile_kernel_only_where_they_should(lab: Lab):
    """The witness is `ip monitor` on the mobile."""
    argv = ["stdbuf", "-oL", "ip", "-o", "monitor", "link", "address", "route"]
    monitor = lab.mobile.popen(argv, stdout=subprocess.PIPE)
    assert monitor.stdout is not None
    time.sleep(0.2)
    lab.link("wifi").cut(CutMode.SILENT)
    lab.link("wifi").restore()
    lab.link("lte").cut(CutMode.CARRIER)
    time.sleep(0.1)
    monitor.terminate()
    events = monitor.stdout.read().decode()
    monitor.wait()
    lab.link("lte").restore()
    assert "wifi" not in events
    assert "lte" in events
    assert "NO-CARRIER" in events


@pytest.mark.parametrize("link", ["wifi", "fat"])
@pytest.mark.parametrize("direction", [Direction.UP, Direction.DOWN])
def test_a_silent_cut_may_be_one_way(lab: Lab, link: str, direction: Direction):
    target = lab.link(link)
    counters = target.counters()
    target.cut(CutMode.SILENT, direction)
    assert lost(lab, link, count=5) == 5
    spent = target.counters().since(counters)
    target.restore()
    assert spent.packets_up >= 5
    assert target.describe()["state"] == "up"
    assert lost(lab, link) == 0


def test_only_the_way_that_is_cut_is_closed(lab: Lab, tmp_path: Path):
    """The witness is a capture at the server."""
    for direction, arrives in ((Direction.UP, False), (Direction.DOWN, True)):
        capture = lab.server.capture(tmp_path / f"{direction}.pcap", f"udp port {PORT}", "eth0")
        lab.link("wifi").cut(CutMode.SILENT, direction)
        lost(lab, "wifi", count=5)
        lab.link("wifi").restore()
        capture.stop()
        read = lab.server.run(["tcpdump", "-n", "-r", str(tmp_path / f"{direction}.pcap")]).stdout
        assert ("IP 10.1.0." in read) == arrives


def test_resets_reach_the_sender(lab: Lab):
    argv = python_argv("msocks_lab.pattern_client", "server", str(PORT), "--upload", "9000000", "--rate", "1000000")
    client = lab.mobile.popen([*argv, "--device", "wifi"], stdout=subprocess.PIPE)
    lab_connections(lab, 1)
    lab.link("wifi").cut(CutMode.RESET)
    assert lost(lab, "wifi") == 0, "UDP passes"
    output = client.communicate(timeout=10)[0]
    lab.link("wifi").restore()
    assert "ConnectionResetError" in json.loads(output)["error"] or "BrokenPipe" in json.loads(output)["error"]
    assert lost(lab, "wifi") == 0


def lab_connections(lab: Lab, count: int) -> None:
    """Return when so many connections are established at the server."""
    deadline = time.monotonic() + 5
    while sum(entry["state"] == "ESTABLISHED" for entry in lab.server.tcp_sockets()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_cut_may_follow_another(lab: Lab):
    target = lab.link("wifi")
    for mode in (*CutMode, *reversed(CutMode)):
        target.cut(mode)
        assert target.describe()["state"] == f"cut ({mode})"
        assert ("LOWER_UP" in interface(lab, "wifi")["flags"]) == (not mode.takes_interface)
    target.restore()
    assert lost(lab, "wifi") == 0
    assert default_routes(lab, "wifi") == {"-4", "-6"}


def test_a_link_comes_later_and_goes_again(lab: Lab):
    target = lab.link("late")
    assert target.addresses == ()
    assert default_routes(lab, "late") == set()
    assert "LOWER_UP" in interface(lab, "late")["flags"]
    with pytest.raises(CommandError, match="detached already"):
        target.detach()
    target.attach()
    assert lost(lab, "late") == lost(lab, "late", "server6") == 0
    assert default_routes(lab, "late") == {"-4", "-6"}
    with pytest.raises(CommandError, match="attached already"):
        target.attach()
    target.detach()
    assert default_routes(lab, "late") == set()
    assert not [item for item in interface(lab, "late")["addr_info"] if item["scope"] == "global"]


def test_a_new_address_replaces_the_old_one(lab: Lab):
    target = lab.link("wifi")
    old = target.addresses
    target.readdress()
    new = target.addresses
    assert not set(old) & set(new)
    held = {item["local"] for item in interface(lab, "wifi")["addr_info"] if item["scope"] == "global"}
    assert held == set(new)
    assert lost(lab, "wifi") == lost(lab, "wifi", "server6") == 0
    assert default_routes(lab, "wifi") == {"-4", "-6"}


# Dials the moment that the interface has carrier and a default route, and tells how long that took. (Without a route a
# socket bound to an interface takes every address for a neighbour, and waits for the answer to its ARP request.)
DIAL_AT_ONCE = """
import pathlib, socket, sys, time
carrier, routes = pathlib.Path("/sys/class/net/wifi/operstate"), pathlib.Path("/proc/net/route")
print("waiting", flush=True)
while carrier.read_text() != "up\\n" or "wifi\\t00000000" not in routes.read_text(): time.sleep(0.0002)
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wifi")
began = time.monotonic()
while True:
    try: s.connect(("server4", %d)); break
    except OSError: time.sleep(0.0002)
print(time.monotonic() - began)
"""


@pytest.mark.parametrize("mode", [CutMode.CARRIER, CutMode.ADMIN])
def test_who_dials_at_the_news_of_the_interface_loses_no_packet(lab: Lab, mode: CutMode):
    """A lost SYN would cost a second."""
    lab.link("wifi").cut(mode)
    dialler = lab.mobile.popen(["python3", "-c", DIAL_AT_ONCE % PORT], stdout=subprocess.PIPE)
    assert dialler.stdout is not None
    dialler.stdout.readline()
    lab.link("wifi").restore()
    assert float(dialler.communicate(timeout=10)[0]) < 0.5


def test_news_of_a_lost_carrier_is_not_held_back(lab: Lab):
    """Linux may delay it by a second where another interface has changed just before."""
    watcher = "import sys, time; from pathlib import Path; p = Path('/sys/class/net/lte/operstate')\n"
    watcher += "print(flush=True)\nwhile p.read_text() == 'up\\n': time.sleep(0.0002)\nprint(time.monotonic())"
    for _ in range(3):
        process = lab.mobile.popen(["python3", "-c", watcher], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        cut = lab.link("lte").cut(CutMode.CARRIER)
        assert float(process.communicate(timeout=5)[0]) < cut.began + 0.05
        lab.link("lte").restore()


def test_every_change_is_timed(lab: Lab):
    known = len(lab.events())
    before = time.monotonic()
    cut = lab.link("wifi").cut()
    restored = lab.link("wifi").restore()
    after = time.monotonic()
    assert lab.events()[known:] == [cut, restored]
    assert before <= cut.began <= cut.done <= restored.began <= restored.done <= after
    assert cut.done - cut.began < 0.1
    assert cut.arguments == {"mode": "silent", "direction": "both"}


def advances(printed: str) -> list[float]:
    """When the stream that tcpdump printed has grown, without what still waited for earlier bytes."""
    waiting, edge, times = [], 1, []
    for line in printed.splitlines():
        found = re.match(r"([\d.]+) .* seq (\d+):(\d+)", line)
        if not found:
            continue  # no payload
        waiting.append((int(found[2]), int(found[3])))
        grown = edge
        for begin, end in sorted(waiting):
            grown = max(grown, end) if begin <= grown else grown
        if grown > edge:
            edge = grown
            times.append(float(found[1]))
    assert edge > 3_000_000
    return times


def test_a_stall_is_measured_as_a_capture_shows_it(lab: Lab, tmp_path: Path):
    """The meter in the receiver against the time stamps of a capture on the same interface."""
    record, pcap = tmp_path / "arrivals.json", tmp_path / "packets.pcap"
    capture = lab.mobile.capture(pcap, f"tcp src port {PORT}", "wifi", snap=96)
    argv = python_argv("msocks_lab.pattern_client", "server4", str(PORT), "--device", "wifi")
    client = lab.mobile.popen([*argv, "--download", "3000000", "--rate", "2000000", "--record", str(record)])
    lab_connections(lab, 1)
    time.sleep(0.3)
    cut = lab.link("wifi").cut()
    time.sleep(0.4)
    restored = lab.link("wifi").restore()
    assert client.wait(20) == 0
    capture.stop()

    printed = lab.mobile.run(["tcpdump", "-n", "-tt", "-r", str(pcap)]).stdout
    seen = max(b - a for a, b in itertools.pairwise(advances(printed)))
    meter = ArrivalMeter.load(record)
    gap = meter.longest_gap(since=cut.began)
    assert gap == meter.longest_gap()
    assert gap.seconds == pytest.approx(seen, abs=0.005)
    assert gap.began <= cut.done + 0.001
    assert gap.ended >= restored.began
    assert meter.total == 3_000_000
