"""The clients and servers that benchmarks measure with, over loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from benchmarks.moving_flows import BLOCK, move
from benchmarks.short_connections import Refused


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of an echo server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "benchmarks.echo_server", str(port), "65536"]
    with subprocess.Popen(argv) as server:
        try:
            _wait_until_listening(port)
            yield port
        finally:
            server.kill()


def _wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nothing listens"
            time.sleep(0.02)
        else:
            return


def _connections(port: int, count: int) -> list[socket.socket]:
    made = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for connection in made:
        connection.setblocking(False)
    return made


def test_all_bytes_of_all_flows_come_back(echo: int):
    connections = _connections(echo, 3)
    move(connections, 3 * BLOCK + 1)
    for connection in connections:
        with connection, pytest.raises(BlockingIOError):
            connection.recv(1)


def test_a_wrong_byte_is_noticed():
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.sendall(b"\0" * 64)
        with pytest.raises(Refused, match="Other bytes"):
            move([near], 64)


def test_an_early_end_is_noticed():
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(Refused, match="ended early"):
            move([near], 64)


@pytest.mark.parametrize("streams", [[], ["--streams"]])
def test_round_trips_are_counted_and_timed(echo: int, streams: list[str]):
    argv = [sys.executable, "-m", "benchmarks.round_trips", "127.0.0.1", str(echo), *streams]
    done = subprocess.run([*argv, "--connections", "3", "--seconds", "0.1"], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    assert result["error"] == ""
    assert result["round_trips"] >= 1
    assert 0 < result["median_us"] <= result["p99_us"] < 1e6
    assert 0 < result["connect_ms"] < 1e3
