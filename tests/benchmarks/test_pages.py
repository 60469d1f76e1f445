"""Pages are made of the raw rounds: every figure, every failure, and where they come from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import handoff_page, publish, relay_page, soak_page
from msocks_lab import STANDARD_LAB

ORIGIN = {
    "commit": "0123456789abcdef",
    "date": "2026-01-02T03:04:05+00:00",
    "command": "PYTHONPATH=. .venv/bin/python benchmarks/some.py",
    "kernel": "6.12.0",
    "processor": "a processor",
    "processors": 2,
    "versions": {"msocks": "1.2.3", "dante": "4.5"},
    "seed": 7,
}


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of all rows that begin with a title."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith(f"| {title} |")
    ]


class TestHandoff:
    def raw(self, *stalls: tuple[str, float | None]) -> dict[str, Any]:
        measured = {
            "rtt_median_ms": 5.1, "rtt_min_ms": 5.0, "rtt_max_ms": 6.0, "down_mbit": 49.9, "up_mbit": 49.8,
        }  # fmt: skip
        rounds = [
            {
                "round": number,
                "contender": contender,
                "direction": "download",
                "stalls": [{"figure": "down", "longest_ms": value, "resumed_ms": value}],
            }
            for number, (contender, value) in enumerate(stalls, 1)
        ]
        return {**ORIGIN, "lab": STANDARD_LAB.to_dict(), "links": [measured, measured], "rounds": rounds}

    def test_median_and_worst_beside_the_peers_and_the_verdict(self):
        page = handoff_page.page(self.raw(("msocks", 90.0), ("msocks", 110.0), ("msocks", 390.0), ("mptcp-two", 230.0)))
        judged, plain = rows(page, "Wi-Fi goes down")
        assert judged == ["Wi-Fi goes down", "download", "110 / 390", "230 / 230", "200 / 400", "yes"]
        assert plain == ["Wi-Fi goes down", "download", "110 / 390", "230 / 230"]

    def test_a_lost_transfer_is_the_worst_of_all_and_no_target_is_kept(self):
        page = handoff_page.page(self.raw(("msocks", 90.0), ("msocks", None), ("msocks", 100.0)))
        assert rows(page, "Wi-Fi goes down")[0][2:] == ["100 / lost", "200 / 400", "**no**"]

    def test_it_says_where_it_comes_from(self):
        page = handoff_page.page(self.raw(("msocks", 90.0)))
        for text in (
            "0123456789abcdef",
            "2026-01-02",
            "Linux 6.12.0",
            "msocks 1.2.3",
            "(data/handoff.json)",
            "some.py",
        ):
            assert text in page


class TestRelay:
    @staticmethod
    def throughput(relay: str, rate: float) -> dict[str, Any]:
        way = {"gbit_per_s": rate, "relay_s_per_gb": 0.5}
        return {"round": 1, "relay": relay, "measurement": "throughput", "error": "", "down": way, "up": way}

    def test_figures_verdicts_and_failures(self):
        idle = {"round": 1, "measurement": "idle", "error": ""}
        rounds = [
            self.throughput("msocks-proxy", 9.0),
            self.throughput("msocks-proxy", 8.0),
            self.throughput("msocks-proxy", 7.0),
            self.throughput("pproxy", 5.0),
            self.throughput("msocks-agent", 3.0),
            self.throughput("pproxy-chain", 4.0),
            {"round": 1, "relay": "dante", "measurement": "throughput", "error": "it did not start"},
            {"round": 1, "relay": "dante", "measurement": "rate", "error": "", "per_s": 4000.4, "relay_us": 200.0},
            {**idle, "relay": "forwarding", "bytes_per_session": {"kernel": 6144.0}},
            {**idle, "relay": "dante", "bytes_per_session": {"kernel": 16384.0, "proxy": 102400.0}},
        ]
        page = relay_page.page({**ORIGIN, "rounds": rounds})
        title = "MSOCKS proxy alone (plain SOCKS5)"
        assert rows(page, title)[0][1:3] == ["8.00 (7.00 - 9.00)", "8.00 (7.00 - 9.00)"]
        assert f"- {title}, down: 1.60 times pproxy; target 1.00, kept." in page
        assert "- MSOCKS agent and proxy, up: 0.75 times two chained pproxy; target 1.00, **not kept**." in page
        assert rows(page, "dante (1 rounds failed)")[0][1] == "-"
        rate, memory = rows(page, "dante")
        assert rate[1:] == ["4,000 (4,000 - 4,000)", "200 (200 - 200)"]
        assert memory[1:] == ["100.0 (100.0 - 100.0)", "-", "10.0 (10.0 - 10.0)"]


class TestSoak:
    def raw(self, problems: list[str]) -> dict[str, Any]:
        storm = {
            "seed": 3, "session_moves": 512, "sessions": [{}, {}], "fewest_concurrent": 22, "sessions_lost": 0,
            "server_connections": 2, "seconds": 60.0, "causes": {"link down": 4},
        }  # fmt: skip
        volume = {
            "bytes_each_way": 1_000_000_000, "rate_limit": 0, "moves": 9, "growth_bytes": {"agent": 30_000},
            "resident_bytes": {"agent": [80_000_000, 81_000_000, 83_000_000]},
        }  # fmt: skip
        return {**ORIGIN, "storms": [storm], "volumes": [volume], "problems": problems}

    def test_every_run_and_the_verdict(self):
        page = soak_page.page(self.raw([]))
        assert "Every byte was right" in page
        assert rows(page, "3") == [["3", "512", "2", "22", "0", "2", "60.0"]]
        assert rows(page, "agent") == [["agent", "1", "-", "9", "81.0", "83.0", "+0.03"]]

    def test_a_failure_stands_first_and_nothing_is_praised(self):
        page = soak_page.page(self.raw(["1 of 40 sessions were lost"]))
        assert "**Failed**: 1 of 40 sessions were lost." in page.split("##")[0]
        assert "Every byte was right" not in page


def test_page_and_raw_rounds_are_written_side_by_side(tmp_path):
    publish.publish(tmp_path, "handoff", {"rounds": [1.5]}, "# Title\n\n")
    assert (tmp_path / "handoff.md").read_text() == "# Title\n"
    assert json.loads((tmp_path / "data" / "handoff.json").read_text()) == {"schema": 1, "rounds": [1.5]}


def test_a_figure_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        publish.publish(tmp_path, "handoff", {"rounds": [float("inf")]}, "# Title")
