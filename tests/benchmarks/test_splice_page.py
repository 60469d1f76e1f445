"""The page of `make bench-splice`: figures, ratios, verdicts, failures."""

from __future__ import annotations

from typing import Any

from benchmarks.splice_contenders import CONTENDERS
from benchmarks.splice_rounds import TITLES

from benchmarks import splice, splice_page

CASES = ("down-1", "up-1", "down-8", "up-8")
BYTES = 1 << 20


def raw(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "commit": "0123456789abcdef", "date": "2026-01-02T03:04:05+00:00", "command": "benchmarks/splice.py",
        "kernel": "6.12.0", "processor": "a processor", "processors": 2, "versions": {"msocks": "1.2.3"}, "seed": 7,
        "datapath": "splice", "durations": {"latency": 2.0, "bulk": 2.0, "rate": 60.0}, "rounds": list(entries),
    }  # fmt: skip


def entry(measurement: str, contender: str, **figures: Any) -> dict[str, Any]:
    return {"round": 1, "measurement": measurement, "contender": contender, "error": "", **figures}


def latency(contender: str, number: int, value: float) -> dict[str, Any]:
    family = {"mean_us": value, "median_us": value, "p99_us": 2 * value}
    return entry("latency", contender, round=number, ipv4=family, ipv6=family)


def throughput(contender: str, rate: float, used: float) -> dict[str, Any]:
    cases = {case: {"gbit_per_s": rate, "machine_s_per_gb": used} for case in CASES}
    return entry("throughput", contender, **cases, grown=3 * BYTES, passed=40 * 10**9)


def rate(contender: str, value: float) -> dict[str, Any]:
    return entry("rate", contender, per_s=value, p99_us=9000, proxy_us=80.0, machine_us=200.0)


def held(sockets: int, program: int, kernel: int, entries: int = 0) -> dict[str, Any]:
    counts = {"sockets": sockets, "time_wait": 0, "descriptors": 20, "entries": entries}
    return {**counts, "program": program * BYTES, "kernel": kernel * BYTES, "maps": []}


def row(page: str, title: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_contender_has_a_title_and_every_measurement_its_contenders():
    assert {kind.name: kind.title for kind in CONTENDERS} == {**TITLES}
    assert {kind.name for kinds in splice.TAKING_PART.values() for kind in kinds} <= set(TITLES)


def test_latency_is_paired_by_round_and_judged():
    slow, fast = 20.0, 10.0
    page = splice_page.page(
        raw(
            latency("forwarding", 1, slow), latency("forwarding", 2, fast),
            latency("msocks", 1, 0.96 * slow), latency("msocks", 2, 0.98 * fast),
        )
    )  # fmt: skip
    cells = row(page, "MSOCKS")
    assert cells[1] == "14.50 (9.80 - 19.20)"
    assert cells[4].startswith("0.970 (0.960 - 0.980")
    assert "- MSOCKS over IP forwarding, IPv6, median: 0.970; target at most 1.00, kept." in page
    assert "upper end of the interval: 0.980; target at most 1.05, kept." in page


def test_what_the_programs_take_of_a_round_trip():
    taken = {"splice_ingress": {"runs": 2.0, "ns": 500.0}}
    both = [latency("msocks", 1, 20.0), entry("programs", "msocks", ipv4=taken, ipv6={})]
    assert row(splice_page.page(raw(*both)), "IPv4, `splice_ingress`")[1:] == [
        "2.00 (2.00 - 2.00)",
        "500 (500 - 500)",
        "5.0",
    ]


def test_throughput_is_compared_with_all_peers():
    page = splice_page.page(
        raw(
            throughput("forwarding", 50.0, 0.30), throughput("msocks", 49.0, 0.33),
            throughput("haproxy", 30.0, 0.5), throughput("dante", 60.0, 0.6),
        )
    )  # fmt: skip
    assert "- 8 flows up, Gbit/s of MSOCKS over IP forwarding: 0.980; target at least 0.95, kept." in page
    assert "- 1 flow down, Gbit/s of MSOCKS over dante: 0.817; target at least 1.00, **not kept**." in page
    assert "processor time of MSOCKS over IP forwarding: 1.100; target at most 1.05, **not kept**." in page
    assert "- MiB that the proxy's memory grew by while 40 GB passed: 3.00; target at most 1.00, **not kept**." in page


def test_rates_are_ratios_and_a_failed_round_is_told():
    failed = {**entry("rate", "dante", round=2), "error": "it ran out of ports"}
    page = splice_page.page(raw(rate("msocks", 6000.0), rate("dante", 3000.0), rate("microsocks", 5000.0), failed))
    assert "- Connections/s of MSOCKS over dante: 2.00; target at least 1.50, kept." in page
    assert "- Connections/s of MSOCKS over microsocks: 1.20; target at least 1.15, kept." in page
    assert row(page, "dante (1 rounds failed)")[1] == "3,000 (3,000 - 3,000)"
    assert "A round failed. dante: it ran out of ports" in page
    assert row(page, "MSOCKS")[7:] == ["1.000 (1.000 - 1.000)"] * 2  # of p99


def test_memory_is_less_what_forwarding_takes():
    maps = [{"name": "flows", "kind": 1, "size": 2048, "most_entries": 10, "entries": 2},
            {"name": "sessions", "kind": 2, "size": 10240, "most_entries": 10, "entries": None}]  # fmt: skip
    levels = [{"sessions": count, "maps": maps} for count in (1000, 10_000)]
    grown = {"program": 512.0, "kernel": 8192.0, "sockets": 0.0}
    direct = {"program": 0.0, "kernel": 7168.0, "sockets": 0.0}
    page = splice_page.page(
        raw(
            entry("memory", "msocks", levels=levels, per_session=grown),
            entry("memory", "forwarding", levels=levels, per_session=direct),
        )
    )
    assert row(page, "MSOCKS")[1:4] == ["0.50 (0.50 - 0.50)", "1.00 (1.00 - 1.00)", "1.50 (1.50 - 1.50)"]
    assert "- KiB of MSOCKS per session: 1.50; target at most 4.00, kept." in page
    assert "- KiB of MSOCKS per session: 1.50; target at most 2.00, kept." in page
    assert row(page, "`sessions`") == ["`sessions`", "10", "10.0", "10.0", "-", "1,024"]
    assert row(page, "`flows`")[4:] == ["2", "-"]


def test_memory_is_plotted_without_what_forwards():
    grown = {"program": 512.0, "kernel": 8192.0, "sockets": 0.0}
    entries = [entry("memory", name, levels=[], per_session=grown) for name in ("msocks", "forwarding")]
    assert list(splice_page.plots(raw(*entries))) == ["splice-memory.svg"]
    assert TITLES["forwarding"] not in splice_page.plots(raw(*entries))["splice-memory.svg"]


def test_what_is_left_behind_is_said_first():
    before, after = held(1, 60, 300), held(3, 61, 301)
    known = {"sessions": 1000, "seconds": 2.0, "forgotten_s": 200.0, "before": before, "after": after}
    page = splice_page.page(raw(entry("churn", "msocks", forgotten=False, **known)))
    assert "**not everything was gone**" in page
    assert row(page, "TCP sockets in the middle")[1:] == ["1", "3"]
    assert row(page, "memory of the proxy, MiB")[1:] == ["60.0", "61.0"]
    assert "each has left behind: 1048.6; target at most 10.00, **not kept**." in page


def test_many_held_sessions_less_their_two_ends():
    known = {"sessions": 1024, "open_s": 9.0, "forgotten_s": 61.0, "forgotten": True}
    empty = held(1, 60, 300)
    page = splice_page.page(
        raw(
            entry("hold", "msocks", before=empty, during=held(1, 61, 309, 3072), after=empty, **known),
            entry("hold", "forwarding", before=empty, during=held(1, 60, 307), after=empty, **known),
        )
    )
    assert "Each took 1.00 KiB of the proxy and 2.00 KiB of the kernel" in page
    assert row(page, "entries of BPF maps")[1:] == ["0", "3,072", "0"]


def test_what_was_not_measured_is_neither_told_nor_plotted():
    only = raw(latency("forwarding", 1, 10.0), latency("msocks", 1, 9.0))
    assert "## Throughput" not in splice_page.page(only)
    assert list(splice_page.plots(only)) == ["splice-latency.svg"]
