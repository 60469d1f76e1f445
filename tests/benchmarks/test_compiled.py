"""The programs in C, over loopback."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from benchmarks.world import BenchmarkError, wait_for

from benchmarks import compiled


@pytest.fixture
def serving() -> Iterator[Callable[[str], int]]:
    """Starts a program's server; its port."""
    with ExitStack() as stack:

        def start(name: str) -> int:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port: int = free.getsockname()[1]
            process = stack.enter_context(subprocess.Popen([compiled.program(name), "serve", str(port)]))
            stack.callback(process.kill)

            def answers() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            wait_for(answers, f"{name} to listen")
            return port

        yield start


def said(*argv: str, **options: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30, **options).stdout  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_round_trips_are_timed(serving: Callable[[str], int], address: str):
    port = serving("ping_pong")
    result = json.loads(said(compiled.program("ping_pong"), "measure", f"{address}/{port}", "-", "10", "0.1"))
    assert result["round_trips"] > 100
    assert 0 < result["min_us"] <= result["median_us"] <= result["p99_us"] <= result["max_us"]


@pytest.mark.parametrize("direction", ["down", "up"])
def test_flows_count_what_arrived(serving: Callable[[str], int], direction: str):
    port = serving("bulk")
    result = json.loads(said(compiled.program("bulk"), "measure", f"127.0.0.1/{port}", "-", direction, "3", "0.3"))
    assert 0 < result["least_flow"] <= result["bytes"] / 3 <= result["most_flow"]
    assert 0.3 <= result["seconds"] < 1


def test_as_many_connections_as_wanted(serving: Callable[[str], int]):
    port = serving("sessions")
    targets = f"127.0.0.1/{port},127.0.0.2/{port}"
    argv = [compiled.program("sessions"), "count", targets, "127.0.0.1,127.0.0.3", "-", "8", "500"]
    result = json.loads(said(*argv))
    assert result["connections"] == 500
    assert 0 < result["median_us"] <= result["p99_us"] <= result["max_us"]


def test_connections_are_held_and_let_go(serving: Callable[[str], int]):
    port = serving("sessions")
    argv = [compiled.program("sessions"), "hold", f"127.0.0.1/{port}", "127.0.0.1", "-", "8"]
    assert said(*argv, input="20\ncheck\n5\ncheck\n") == "20\ncheck\n5\ncheck\n"


def test_a_program_that_cannot_connect_says_why():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(subprocess.CalledProcessError) as refused:
        said(compiled.program("ping_pong"), "measure", f"127.0.0.1/{port}", "-", "10", "0.1")
    assert "Connection refused" in refused.value.stderr


def test_without_a_compiler_it_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(compiled, "_BUILT", tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchmarkError, match="apt-get install gcc"):
        compiled.program("ping_pong")
