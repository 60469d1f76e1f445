"""One direction of the emulator, in made-up time."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msocks_lab import Shape
from msocks_lab.shaping import Pipe

PACKET = bytes(1000)
SLOW = Shape(delay_ms=10, rate_mbit=8, queue_ms=5)  # a packet takes 1 ms, five wait


def drain(pipe: Pipe) -> list[tuple[float, bytes]]:
    """Everything in the pipe, with the time at which it comes out."""
    out = []
    while math.isfinite(now := pipe.next_delivery):
        while (packet := pipe.take(now)) is not None:
            out.append((now, packet))
    return out


def numbered(count: int, size: int = 1000) -> list[bytes]:
    return [number.to_bytes(size, "big") for number in range(count)]


def test_a_packet_takes_its_serialisation_and_the_delay():
    pipe = Pipe(Shape(delay_ms=10, rate_mbit=8), "x")
    pipe.offer(PACKET, 5.0)
    assert pipe.take(5.010999) is None
    assert pipe.next_delivery == pytest.approx(5.011)
    assert pipe.take(5.0111) == PACKET


def test_a_burst_comes_out_at_the_rate_and_in_order():
    pipe = Pipe(Shape(delay_ms=10, rate_mbit=8, queue_ms=1000), "x")
    packets = numbered(100)
    for packet in packets:
        pipe.offer(packet, 1.0)
    out = drain(pipe)
    assert [packet for _, packet in out] == packets
    assert [time for time, _ in out] == pytest.approx([1.011 + 0.001 * number for number in range(100)])


def test_the_serialiser_rests_between_bursts():
    pipe = Pipe(SLOW, "x")
    pipe.offer(PACKET, 1.0)
    pipe.offer(PACKET, 2.0)
    assert [time for time, _ in drain(pipe)] == pytest.approx([1.011, 2.011])


def test_the_queue_drops_its_tail():
    pipe = Pipe(SLOW, "x")
    packets = numbered(9)
    for packet in packets:
        pipe.offer(packet, 1.0)
    assert [packet for _, packet in drain(pipe)] == packets[:5]
    assert pipe.counters.dropped_queue == 4


def test_a_queue_in_bytes_counts_bytes():
    pipe = Pipe(Shape(rate_mbit=8, queue_bytes=2500), "x")
    for size in (1000, 1000, 1000, 400):
        pipe.offer(bytes(size), 1.0)
    assert [len(packet) for _, packet in drain(pipe)] == [1000, 1000, 400]


def test_without_a_rate_only_the_delay_counts():
    pipe = Pipe(Shape(delay_ms=3), "x")
    for _ in range(1000):
        pipe.offer(PACKET, 1.0)
    assert {round(time, 9) for time, _ in drain(pipe)} == {1.003}


def test_loss_is_as_frequent_as_asked_and_takes_its_time_on_the_wire():
    pipe = Pipe(Shape(rate_mbit=8, queue_ms=60_000, loss_percent=10), "x")
    for _ in range(10_000):
        pipe.offer(PACKET, 0.0)
    out = drain(pipe)
    assert 8800 < len(out) < 9200
    assert out[-1][0] == pytest.approx(10.0, abs=0.1)
    assert pipe.counters.dropped_loss == 10_000 - len(out)


def test_jitter_spreads_and_keeps_order():
    pipe = Pipe(Shape(delay_ms=10, jitter_ms=4), "x")
    packets = numbered(1000)
    for index, packet in enumerate(packets):
        pipe.offer(packet, index * 0.1)
    out = drain(pipe)
    assert [packet for _, packet in out] == packets
    extra = [time - index * 0.1 - 0.010 for index, (time, _) in enumerate(out)]
    assert min(extra) >= -1e-9
    assert max(extra) <= 0.004 + 1e-9
    assert sum(extra) / len(extra) == pytest.approx(0.002, abs=0.0003)


def test_reordered_packets_are_overtaken():
    pipe = Pipe(Shape(delay_ms=10, reorder_percent=20, reorder_ms=3), "x")
    packets = numbered(1000)
    for index, packet in enumerate(packets):
        pipe.offer(packet, index * 0.001)
    out = [packet for _, packet in drain(pipe)]
    assert sorted(out) == packets
    late = sum(a > b for a, b in itertools.pairwise(out))
    assert 100 < late <= pipe.counters.reordered < 300


def test_duplicates_come_right_behind():
    pipe = Pipe(Shape(duplicate_percent=30), "x")
    packets = numbered(1000)
    for packet in packets:
        pipe.offer(packet, 0.0)
    out = [packet for _, packet in drain(pipe)]
    assert sorted(set(out)) == packets
    assert out == sorted(out)
    assert 200 < len(out) - 1000 == pipe.counters.duplicated < 400


def test_the_same_seed_has_the_same_luck():
    def run(seed: str) -> list[tuple[float, bytes]]:
        pipe = Pipe(Shape(delay_ms=1, jitter_ms=5, loss_percent=20, reorder_percent=10, duplicate_percent=10), seed)
        for index, packet in enumerate(numbered(300)):
            pipe.offer(packet, index * 0.001)
        return drain(pipe)

    assert run("a") == run("a") != run("b")


def test_a_new_rate_holds_for_what_is_queued():
    pipe = Pipe(Shape(delay_ms=10, rate_mbit=8, queue_ms=100), "x")
    for _ in range(10):
        pipe.offer(PACKET, 1.0)
    # At 1.0025 two packets travel, the third is half out: 7.5 packets remain, of 0.5 ms each now.
    pipe.reshape(Shape(delay_ms=10, rate_mbit=16, queue_ms=100), 1.0025)
    pipe.offer(PACKET, 1.0025)
    times = [time for time, _ in drain(pipe)]
    assert times == pytest.approx([1.011, 1.012, *(1.01275 + 0.0005 * number for number in range(9))])


def test_a_shorter_delay_lets_nothing_overtake():
    pipe = Pipe(Shape(delay_ms=50), "x")
    pipe.offer(b"old", 1.0)
    pipe.reshape(Shape(delay_ms=5), 1.01)
    pipe.offer(b"new", 1.01)
    pipe.offer(b"later", 1.06)
    out = drain(pipe)
    assert [packet for _, packet in out] == [b"old", b"new", b"later"]
    assert [time for time, _ in out] == pytest.approx([1.05, 1.05, 1.065])


def test_a_cut_swallows_everything_until_it_ends():
    pipe = Pipe(SLOW, "x")
    pipe.offer(PACKET, 1.0)
    pipe.offer(PACKET, 1.0)
    pipe.cut(True)
    pipe.offer(PACKET, 1.001)
    assert drain(pipe) == []
    pipe.cut(False)
    pipe.offer(PACKET, 1.002)
    assert [time for time, _ in drain(pipe)] == pytest.approx([1.013])
    assert pipe.counters.dropped_cut == 3


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 0.01), st.integers(20, 1500)), max_size=60),
    changes=st.lists(st.tuples(st.integers(0, 59), st.floats(0, 30), st.floats(0.5, 100)), max_size=3),
)
def test_nothing_is_invented_and_nothing_overtakes(
    arrivals: list[tuple[float, int]], changes: list[tuple[int, float, float]]
):
    pipe, now, sent = Pipe(SLOW, "x"), 0.0, []
    for index, (pause, size) in enumerate(arrivals):
        now += pause
        for _, delay, rate in (change for change in changes if change[0] == index):
            pipe.reshape(Shape(delay_ms=delay, rate_mbit=rate, queue_ms=5), now)
        packet = index.to_bytes(4, "big") + bytes(size - 4)
        pipe.offer(packet, now)
        sent.append(packet)
    out = drain(pipe)
    numbers = [int.from_bytes(packet[:4], "big") for _, packet in out]
    assert numbers == sorted(set(numbers))
    assert len(out) + pipe.counters.dropped_queue == len(sent)
    assert all(packet in sent for _, packet in out)
    assert [time for time, _ in out] == sorted(time for time, _ in out)
