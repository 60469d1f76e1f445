"""What links carry: rates, months, and what is kept of them."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from msocks.agent.link_meter import LinkMeter, read_counters
from msocks.link_monitor.link_kind import link_kind
from msocks.policy.data_month import month_begins
from msocks.values.link import LinkKind


class Interface:
    """Counters and a calendar that the test turns."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.received = 1_000_000
        self.sent = 500_000
        self.today = date(2026, 3, 14)
        self.now = 0.0
        self.meter = self.new_meter()

    def new_meter(self) -> LinkMeter:
        return LinkMeter(
            self.directory, today=lambda: self.today, counters=lambda: {"wwan0": (self.received, self.sent)}
        )

    def read(self, received: int = 0, sent: int = 0, after_s: float = 1.0) -> int:
        self.received += received
        self.sent += sent
        self.now += after_s
        self.meter.read(self.now, {"wwan0": 15})
        return self.meter.used("wwan0")


@pytest.fixture
def interface(tmp_path: Path) -> Interface:
    return Interface(tmp_path / "state")


def test_both_directions_count_from_the_first_look_on(interface: Interface):
    assert interface.read() == 0
    assert interface.read(700, 300) == 1000
    assert interface.read() == 1000


def test_an_interface_that_is_made_anew_counts_from_zero(interface: Interface):
    interface.read()
    interface.read(700, 300)
    interface.received, interface.sent = 50, 20
    assert interface.read() == 1070


def test_a_month_begins_on_its_day(interface: Interface):
    interface.read()
    assert interface.read(1000) == 1000
    interface.today = date(2026, 3, 15)
    assert interface.read(7) == 7


@pytest.mark.parametrize(
    ("today", "day", "begins"),
    [
        (date(2026, 3, 14), 15, date(2026, 2, 15)),
        (date(2026, 3, 15), 15, date(2026, 3, 15)),
        (date(2026, 1, 3), 28, date(2025, 12, 28)),
        (date(2026, 1, 1), 1, date(2026, 1, 1)),
        (date(2024, 2, 29), 28, date(2024, 2, 28)),
    ],
)
def test_months(today: date, day: int, begins: date):
    assert month_begins(today, day) == begins


def test_the_month_outlives_the_agent(interface: Interface):
    interface.read()
    interface.read(700, 300)
    interface.meter.save()
    interface.meter = interface.new_meter()
    assert interface.read(after_s=0) == 1000
    assert interface.read(1) == 1001


def test_it_is_written_in_time_and_whole(interface: Interface):
    interface.read()
    place = interface.directory / "usage.json"
    interface.read(1000, after_s=1)
    interface.read(1000, after_s=10)
    assert json.loads(place.read_text())["links"]["wwan0"] == {"since": "2026-02-15", "bytes": 2000}
    assert [each.name for each in interface.directory.iterdir()] == ["usage.json"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"links": {"wwan0": {"since": "x", "bytes": 1}}}', '{"links": {"wwan0": 3}}',
                '{"links": {"wwan0": {"since": "2026-02-15", "bytes": -1}}}', "\0\0"],
)  # fmt: skip
def test_a_damaged_file_is_put_aside(interface: Interface, content: str):
    interface.directory.mkdir()
    (interface.directory / "usage.json").write_text(content)
    assert interface.read() == 0
    assert interface.read(5) == 5
    assert (interface.directory / "usage.json.damaged").read_text() == content


def test_a_rate_is_the_most_of_late_and_is_forgotten_slowly(interface: Interface):
    interface.read()
    interface.read(1_250_000)  # 10 Mbit/s
    assert interface.meter.rate_mbit("wwan0") == pytest.approx(10, rel=0.01)
    interface.read(125_000)
    assert interface.meter.rate_mbit("wwan0") == pytest.approx(10, rel=0.01)
    for _ in range(346):
        interface.read()
    assert interface.meter.rate_mbit("wwan0") == pytest.approx(5, rel=0.02)
    for _ in range(3000):
        interface.read()
    assert interface.meter.rate_mbit("wwan0") is None


def test_the_kernel_counts_loopback():
    before = read_counters()["lo"]
    assert len(before) == 2


def test_kinds(tmp_path: Path):
    for name, made in [("wlan0", "phy80211"), ("wlan1", "wireless"), ("eth0", "device")]:
        (tmp_path / name / made).mkdir(parents=True)
    (tmp_path / "wwan0").mkdir()
    (tmp_path / "wwan0" / "uevent").write_text("DEVTYPE=wwan\nINTERFACE=wwan0\n")
    kinds = [link_kind(name, tmp_path) for name in ("wlan0", "wlan1", "eth0", "wwan0", "gone0")]
    wifi, wire, cell = LinkKind.WIFI, LinkKind.ETHERNET, LinkKind.CELLULAR
    assert kinds == [wifi, wifi, wire, cell, wire]
