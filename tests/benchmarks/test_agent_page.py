"""The page of `make bench-agent`: figures, ratios, verdicts, what a kernel path would gain, failures."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.agent_profile import grouped, parse_counts, parse_report, place_shares
from benchmarks.world import BenchmarkError

from benchmarks import agent_page

MIB = 1 << 20


def raw(*entries: dict[str, Any], **once: dict[str, Any]) -> dict[str, Any]:
    return {
        "commit": "0123456789abcdef", "date": "2026-01-02T03:04:05+00:00", "command": "benchmarks/agent.py",
        "kernel": "6.12.0", "processor": "a processor", "processors": 2, "versions": {"msocks": "1.2.3"}, "seed": 7,
        "amounts": {"gigabit": 200_000_000, "unlimited": 2_000_000_000, "round_trips_s": 0.5, "connections": 20},
        "rounds": list(entries), **once,
    }  # fmt: skip


def entry(
    speed: str, way: str, rate: float, number: int = 1, machine: float = 0.5, trip: float = 20.0
) -> dict[str, Any]:
    nothing = {"user_s_per_gb": 0.0, "system_s_per_gb": 0.0}
    used = {"user_s_per_gb": 0.1, "system_s_per_gb": 0.3} if way in ("agent", "run") else nothing
    transfer = {
        "gbit_per_s": rate, "machine_s_per_gb": machine, "client_s_per_gb": 0.25,
        "agent": used, "proxy": nothing, "stand-in": nothing,
    }  # fmt: skip
    latency = {"connect_ms": trip / 10, "mean_us": trip, "median_us": trip, "p99_us": 2 * trip, "round_trips": 100}
    known = {"round": number, "measurement": speed, "contender": way, "error": ""}
    return {**known, "down": transfer, "up": transfer, "latency": latency}


def row(page: str, title: str, occurrence: int = 0) -> list[str]:
    lines = [line for line in page.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in lines[occurrence].strip("|").split("|")]


def one_profile() -> dict[str, Any]:
    symbols = [
        {"place": "kernel", "symbol": "tcp_sendmsg_locked", "object": "[kernel.kallsyms]", "share": 0.5},
        {"place": "copy", "symbol": "_copy_to_iter", "object": "[kernel.kallsyms]", "share": 0.3},
        {"place": "user", "symbol": "", "object": "", "share": 0.2},
    ]
    return {"symbols": symbols, "calls": {"recvfrom": 16_000.0, "getpid": 2.0}}


def test_what_a_gigabit_keeps_is_judged_by_the_rounds_ratios():
    page = agent_page.page(
        raw(
            entry("gigabit", "splice", 0.95, 1), entry("gigabit", "splice", 0.50, 2),
            entry("gigabit", "agent", 0.94, 1), entry("gigabit", "agent", 0.49, 2),
            entry("gigabit", "run", 0.80, 1), entry("gigabit", "run", 0.40, 2),
        )
    )  # fmt: skip
    assert row(page, "agent (SOCKS5)")[1] == "0.715 (0.490 - 0.940)"
    assert row(page, "the splice alone")[3:] == ["1", "1"]
    assert "- agent (SOCKS5), down, over the splice alone: 0.985; target at least 0.95, kept." in page
    assert "- `msocks run`, up, over the splice alone: 0.821; target at least 0.95, **not kept**." in page
    assert "s/GB" not in page
    assert "unlimited" not in page


def test_streams_are_compared_with_streams_too():
    page = agent_page.page(
        raw(
            entry("gigabit", "splice", 10.0, trip=10.0), entry("gigabit", "streams-splice", 5.0, trip=30.0),
            entry("gigabit", "streams", 4.0, trip=35.5),
        )
    )  # fmt: skip
    assert row(page, "streams, library")[3] == "0.400 (0.400 - 0.400)"
    assert row(page, "... over streams, the splice alone")[3] == "0.800 (0.800 - 0.800)"
    trips = row(page, "streams, library", 1)
    assert trips[1:3] == ["35.5 (35.5 - 35.5)", "5.5 (5.5 - 5.5)"]
    assert trips[4:] == ["3.55 (3.55 - 3.55)", "0.55 (0.55 - 0.55)"]
    assert row(page, "the splice alone", 1)[2] == "-"


def test_unlimited_shows_whose_the_processor_time_is():
    page = agent_page.page(raw(entry("unlimited", "splice", 50.0), entry("unlimited", "agent", 20.0, machine=0.8)))
    assert "target" not in page
    assert row(page, "agent (SOCKS5)", 2)[1:] == [
        "0.80 (0.80 - 0.80)",
        "0.25 (0.25 - 0.25)",
        "0.10 (0.10 - 0.10)",
        "0.30 (0.30 - 0.30)",
    ]
    assert row(page, "the splice alone", 2)[3:] == ["-", "-"]
    assert list(agent_page.plots(raw(entry("unlimited", "splice", 50.0)))) == ["agent-throughput.svg"]
    assert agent_page.plots(raw(entry("gigabit", "splice", 0.9))) == {}


def test_a_failed_round_is_told():
    failed = {**entry("gigabit", "run", 0.0, 2), "error": "down: it did not start"}
    page = agent_page.page(raw(entry("gigabit", "run", 0.9), entry("gigabit", "splice", 0.9), failed))
    assert row(page, "`msocks run` (1 rounds failed)")[1] == "0.900 (0.900 - 0.900)"
    assert "A round failed. `msocks run`: down: it did not start" in page


def test_what_a_kernel_path_would_gain():
    profile = {"error": "", "down": one_profile(), "up": one_profile()}
    measured = [
        entry("unlimited", "splice", 40.0, machine=0.4),
        entry("unlimited", "agent", 16.0, machine=1.0),
        entry("unlimited", "stand-in", 24.0, machine=0.8),
    ]
    page = " ".join(agent_page.page(raw(*measured, profile=profile)).split())
    assert "could save more than 60%" in page
    assert "own processor time is 0.40 s/GB, of which user space and copying are 50%" in page
    assert "without both: 0.20 s/GB, which is 20% of what the machine spends" in page
    assert "makes it 0.80 s/GB, a change of -20%, and carries 1.50 times" in page
    assert "| `recvfrom` | 16,000 | 16,000 |" in page
    assert "getpid" not in page
    assert "| `_copy_to_iter` (copy) | 30.0% |" in page


def test_a_profile_alone_gains_nothing():
    page = agent_page.page(raw(profile={"error": "", "down": one_profile(), "up": one_profile()}))
    assert "| user space | 20.0% | 20.0% |" in page
    assert "machine spends" not in page


@pytest.mark.parametrize("part", ["profile", "flows"])
def test_what_could_not_be_measured_says_why(part: str):
    assert "**Failed**: no perf here" in agent_page.page(raw(**{part: {"error": "no perf here"}}))


def levels(*memory: int) -> dict[str, Any]:
    names = ["no flow", "5000 flows open", "pass 1", "pass 2", "pass 3"]
    moved = [0, 0, 4_000_000_000, 8_000_000_000, 12_000_000_000]
    found = [
        {"name": name, "moved": total, "agent": size * MIB, "kernel": MIB, "descriptors": 1, "seconds": 2.0}
        for name, total, size in zip(names, moved, memory, strict=True)
    ]
    return {"error": "", "flows": 5000, "flow_bytes": 400_000, "levels": found}


def test_memory_that_grows_with_the_bytes_is_told():
    page = agent_page.page(raw(flows=levels(50, 150, 160, 200, 240)))
    assert "takes 20.5 KiB of the agent, one that has carried bytes 22.5 KiB" in page
    assert "grew by 10,486 bytes for each MB" in page
    assert "while 8.0 GB passed: 80.00; target at most 2.00, **not kept**." in page
    assert row(page, "pass 3") == ["pass 3", "12.0", "240.0", "1.0", "2.0"]


def test_what_the_first_bytes_take_is_no_growth():
    page = agent_page.page(raw(flows=levels(50, 150, 160, 161, 160)))
    assert "while 8.0 GB passed: 0.00; target at most 2.00, kept." in page


REPORT = """
    40.00%;[kernel.kallsyms];[k] _copy_to_iter
    30.50%;[kernel.kallsyms];[k] tcp_sendmsg_locked
    29.35%;/usr/bin/python3.11;[.] _PyEval_EvalFrameDefault
     0.10%;/usr/lib/libc.so.6;[.] __memmove_avx_unaligned
     0.05%;[kernel.kallsyms];[k] __memcpy
"""


def test_samples_are_put_where_they_are():
    entries = grouped(parse_report(REPORT))
    assert [(each["place"], each["symbol"], each["object"]) for each in entries[:3]] == [
        ("copy", "_copy_to_iter", "[kernel.kallsyms]"),
        ("kernel", "tcp_sendmsg_locked", "[kernel.kallsyms]"),
        ("user", "_PyEval_EvalFrameDefault", "python3.11"),
    ]
    assert [each["symbol"] for each in entries[3:]] == ["", ""]
    shares = place_shares(entries)
    assert shares["copy"] == pytest.approx(0.4005)
    assert shares["user"] == pytest.approx(0.2945)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_no_sample_is_no_profile():
    with pytest.raises(BenchmarkError, match="no sample"):
        parse_report("\n")


def test_system_calls_are_counted_by_name():
    text = "0;;syscalls:sys_enter_socket;1;100.00;;\n1234;;syscalls:sys_enter_recvfrom;1;100.00;;\nwarning\n"
    assert parse_counts(text) == {"recvfrom": 1234}
