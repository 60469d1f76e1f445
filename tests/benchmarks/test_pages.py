"""Pages are made of the raw rounds: every figure, every failure, and where they come from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import (
    false_moves_page,
    handoff_page,
    many_sessions_page,
    new_connection_page,
    publish,
    relay_page,
    soak_page,
)
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
    def entry(self, number: int, contender: str, value: float | None, **others: Any) -> dict[str, Any]:
        stall = {
            "figure": others.get("case", "down"),
            "longest_ms": value,
            "resumed_ms": value,
            "amount_ms": value,
            "rate_mbit": 19.25,
        }
        entry = {"round": number, "contender": contender, "direction": "download", "case": "down", "error": ""}
        return {
            **entry,
            "stalls": [stall],
            "moments": [],
            "server": [self.server(0), self.server(1), self.server(1)],
        } | others

    def server(self, timeouts: int, srtt: float = 60.0) -> dict[str, float]:
        return {"TCPTimeouts": timeouts, "RetransSegs": 7, "srtt_ms": srtt, "window_segments": 100}

    def raw(self, *rounds: dict[str, Any]) -> dict[str, Any]:
        measured = {
            "rtt_median_ms": 5.1, "rtt_min_ms": 5.0, "rtt_max_ms": 6.0, "down_mbit": 49.9, "up_mbit": 49.8,
        }  # fmt: skip
        return {
            **ORIGIN, "lab": STANDARD_LAB.to_dict(), "links": [measured, measured], "rounds": list(rounds),
            "part": False,
        }  # fmt: skip

    def page(self, *values: tuple[str, float | None]) -> str:
        return handoff_page.page(self.raw(*(self.entry(number, *value) for number, value in enumerate(values, 1))))

    def test_median_and_worst_beside_the_peers_and_the_verdict(self):
        page = self.page(("msocks", 50.0), ("msocks", 55.0), ("msocks", 390.0), ("mptcp-backup", 53.0))
        judged, plain, amount = rows(page, "Wi-Fi goes down")[:3]
        assert judged == ["Wi-Fi goes down", "download", "55 / 390", "53 / 53", "60", "yes", "**no**"]
        assert plain == ["Wi-Fi goes down", "download", "55 / 390", "53 / 53"]
        assert amount == ["Wi-Fi goes down", "download", "55 / 390", "53 / 53", "250", "yes"]

    def test_each_direction_has_its_own_target(self):
        up = self.entry(1, "msocks", 55.0, direction="upload")
        page = handoff_page.page(self.raw(self.entry(1, "msocks", 55.0), up))
        verdicts = {row[1]: row[3:5] for row in rows(page, "Wi-Fi goes down") if len(row) == 6}
        assert verdicts == {"download": ["60", "yes"], "upload": ["50", "**no**"]}

    def test_most_transfers_lost_keep_no_target(self):
        page = self.page(("msocks", 20.0), ("msocks", None), ("msocks", None))
        assert rows(page, "Wi-Fi goes down")[0][2:] == ["lost / lost", "60", "**no**", "-"]

    def test_what_the_server_noticed(self):
        page = self.page(("msocks", 50.0), ("msocks", 50.0), ("mptcp-backup", 50.0))
        cells = rows(page, "Wi-Fi goes down")[-1]
        assert cells[1:] == [
            "2",
            "2",
            "0 / 0",
            "100 / 100",
            "**no**",
            "60 / 60",
            "50 to 150",
            "yes",
            "19.2 / 19.2 of 20",
        ]

    def test_outages_are_plotted_by_their_length_with_the_latest_restart(self):
        moment = {"figure": "gone-1s", "began": 10.0, "usable": 11.25}
        one = self.entry(1, "msocks", 90.0, case="gone-1s", moments=[moment])
        five = self.entry(1, "msocks", 95.0, case="gone-5s")
        assert "up\nto 250 ms late" in handoff_page.page(self.raw(one, five))
        assert handoff_page.plot(self.raw(one)) == ""

    def test_a_part_says_so(self):
        whole = self.raw(self.entry(1, "msocks", 90.0))
        assert "A part of the benchmark" not in handoff_page.page(whole)
        assert "A part of the benchmark" in handoff_page.page({**whole, "part": True})

    def test_it_says_where_it_comes_from(self):
        page = self.page(("msocks", 90.0))
        for text in (
            "0123456789abcdef",
            "2026-01-02",
            "Linux 6.12.0",
            "msocks 1.2.3",
            "(data/handoff.json)",
            "some.py",
        ):
            assert text in page

    def test_many_sessions(self):
        good = {
            "round": 1, "event": "carrier", "error": "", "resumed_s": [0.25, 0.5, None],
            "problems": ["session 2: hung"],
            "processor_s": {"proxy": 0.5, "agent": 1.5}, "steady_share": {"proxy": 0.01, "agent": 0.2},
        }  # fmt: skip
        failed = {"round": 1, "event": "silent", "error": "it did not start"}
        text = many_sessions_page.section({**ORIGIN, "sessions": 3, "period_s": 0.5, "rounds": [good, failed]})
        assert rows(text, "Wi-Fi goes down") == [
            ["Wi-Fi goes down", "0.50 / 0.50", "lost / lost", "1", "0.50 / 0.50", "1.50 / 1.50", "1%", "20%"]
        ]
        assert "**Failed**: Wi-Fi goes silent: it did not start." in text

    def test_a_new_connection(self):
        amounts: dict[str, list[float | None]] = {"tcp": [240.4, 251.0, 247.6], "msocks": [250.0, None, 256.0]}
        rounds = [
            {"round": number + 1, "contender": contender, "amount_ms": amount}
            for contender, found in amounts.items()
            for number, amount in enumerate(found)
        ]
        text = new_connection_page.section({**ORIGIN, "rounds": rounds})
        assert "took 248 / 251 ms" in text
        assert "down 256 / lost\nms" in text
        assert "of 3 rounds" in text
        assert text in handoff_page.page(
            self.raw(self.entry(1, "msocks", 90.0)), new_connection={**ORIGIN, "rounds": rounds}
        )

    def test_false_moves(self):
        lab = {
            "traffic": "upload", "moves": 1, "error": "",
            "crossed": {"lte": {"bytes_down": 50_000, "bytes_up": 60_000}},
            "emulators": [{"up": {"dropped_loss": 1000}, "down": {"dropped_loss": 234}}],
        }  # fmt: skip
        link = {"name": "wifi", "loss_percent": 2, "jitter_ms": 20}
        text = false_moves_page.section({**ORIGIN, "minutes": 10, "links": [link], "labs": [lab]})
        assert rows(text, "upload") == [["upload", "1", "1,234", "50 / 60", "all right"]]
        assert "**not kept**" in text


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
            "server_connections": 2, "datapath": "splice", "crashes": 5, "seconds": 60.0, "causes": {"link down": 4},
        }  # fmt: skip
        volume = {
            "bytes_each_way": 1_000_000_000, "rate_limit": 0, "moves": 9, "growth_bytes": {"agent": 30_000},
            "resident_bytes": {"agent": [80_000_000, 81_000_000, 83_000_000]},
        }  # fmt: skip
        return {**ORIGIN, "storms": [storm], "volumes": [volume], "problems": problems}

    def test_every_run_and_the_verdict(self):
        page = soak_page.page(self.raw([]))
        assert "Every byte was right" in page
        assert rows(page, "3") == [["3", "512", "2", "22", "0", "2", "splice", "5", "60.0"]]
        assert rows(page, "agent") == [["agent", "1", "-", "9", "81.0", "83.0", "+0.03"]]

    def test_moves_alone_say_nothing_of_memory(self):
        page = soak_page.page({**self.raw([]), "volumes": []}, "crashes")
        assert "memory" not in page
        assert "(data/crashes.json)" in page

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
