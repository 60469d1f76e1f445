"""What the kernel is told of a pace, on real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from msocks.session import pacing
from msocks.transport.kernel import SO_MAX_PACING_RATE, limit_rate, tcp_info
from msocks.transport.leg_pacer import LegPacer

UNLIMITED = 2**64 - 1


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with closing(near), closing(far):
        yield near, far


def told(sock: socket.socket) -> int:
    (rate,) = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))
    return int(rate)


def test_a_rate_is_kept_by_the_kernel_and_taken_away(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    limit_rate(near, 10_000_000.0)
    began = time.monotonic()
    for _ in range(60):  # the kernel paces from the tenth segment on; one on loopback has 64 KB
        near.sendall(bytes(50_000))
        assert len(far.recv(50_000, socket.MSG_WAITALL)) == 50_000
    assert time.monotonic() - began > 0.15
    assert told(near) == 10_000_000
    limit_rate(near, None)
    assert told(near) == UNLIMITED


def test_what_tcp_info_says_of_a_flight(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.sendall(bytes(5000))
    assert len(far.recv(5000, socket.MSG_WAITALL)) == 5000
    deadline = time.monotonic() + 5.0
    while tcp_info(near).unacked_segments and time.monotonic() < deadline:
        time.sleep(0.01)
    info = tcp_info(near)
    assert info.acknowledged_bytes in (5000, 5001)  # the SYN may count
    assert info.unsent_bytes == 0
    assert 0 < info.rtt_least_ms <= info.rtt_ms


async def test_a_leg_whose_queue_grows_is_paced(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = pair
    near.setblocking(False)
    monkeypatch.setattr(pacing, "QUEUE_S", 0.0)  # loopback has no queue
    monkeypatch.setattr(pacing, "LASTS_S", 0.5)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
    limit_rate(near, 400_000.0)  # a slow link
    near.send(bytes(400_000))
    pacer = LegPacer(asyncio.get_running_loop(), near)
    pacer.on_sent()
    rates = set()
    for _ in range(40):
        await asyncio.sleep(0.02)
        rates.add(told(near))
    assert any(5_000 < rate < UNLIMITED and rate != 400_000 for rate in rates)
    assert told(near) == UNLIMITED, "it is over"
    del far


async def test_a_leg_that_is_closed_is_looked_at_no_more(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    pacer = LegPacer(asyncio.get_running_loop(), near)
    pacer.on_sent()
    near.close()
    await asyncio.sleep(pacing.INTERVAL_LEAST_S * 2)
    pacer.on_sent()
    await asyncio.sleep(pacing.INTERVAL_LEAST_S * 2)
