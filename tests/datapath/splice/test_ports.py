from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.datapath.splice.two_hosts import packed, set_sysctl, sysctl
from tests.datapath.splice.unprivileged import error_of_nobody
from tests.own_network import OwnNetwork, own_network

from msocks.datapath.splice.ports import (
    PortAllocator,
    PortRange,
    format_ranges,
    listeners_within,
    parse_ranges,
    reserve,
)
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.errors import ConfigurationError

SERVER, OTHER = packed("192.0.2.2"), packed("2001:db8::2")
AUTOMATIC, RESERVED = "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"


@pytest.fixture
def network() -> Iterator[OwnNetwork]:
    with own_network() as network:
        yield network


@pytest.mark.parametrize(("first", "last"), [(1023, 2000), (3000, 2999), (3000, 65536)])
def test_a_range_has_limits(first: int, last: int):
    with pytest.raises(ConfigurationError, match=f"{first}-{last}"):
        PortRange(first, last)


def test_a_range_knows_its_ports():
    ports = PortRange(2000, 2001)
    assert len(ports) == 2
    assert [port for port in range(1990, 2010) if port in ports] == [2000, 2001]


def test_a_port_serves_many_destinations_but_each_only_once():
    allocator = PortAllocator(PortRange(2000, 2009))
    for remote, remote_port in ((SERVER, 443), (SERVER, 80), (OTHER, 443)):
        assert {allocator.take(remote, remote_port) for _ in range(10)} == set(range(2000, 2010))
        with pytest.raises(OSError, match="every port") as caught:
            allocator.take(remote, remote_port)
        assert caught.value.errno == errno.EADDRNOTAVAIL
    assert len(allocator) == 30


def test_ports_are_taken_in_turn_however_soon_they_are_released():
    allocator = PortAllocator(PortRange(2000, 2009))
    order = []
    for _ in range(25):
        port = allocator.take(SERVER, 443)
        allocator.release(SERVER, 443, port)
        order.append(port)
    assert all(after - before in (1, -9) for before, after in pairwise(order))


def test_allocators_begin_at_different_places_and_so_do_destinations():
    ports = PortRange(1024, 65535)
    assert len({PortAllocator(ports).take(SERVER, 443) for _ in range(20)}) > 15
    allocator = PortAllocator(ports)
    assert len({allocator.take(SERVER, remote_port) for remote_port in range(20)}) > 15


def test_a_claimed_port_is_not_given_again():
    allocator = PortAllocator(PortRange(2000, 2002))
    allocator.claim(SERVER, 443, 2001)
    assert {allocator.take(SERVER, 443), allocator.take(SERVER, 443)} == {2000, 2002}
    for _ in range(2):
        with pytest.raises(ValueError, match="2001 is in use"):
            allocator.claim(SERVER, 443, 2001)
    allocator.release(SERVER, 443, 2001)
    assert allocator.take(SERVER, 443) == 2001


def test_ports_from_before_the_range_was_changed_do_not_matter():
    allocator = PortAllocator(PortRange(2000, 2000))
    allocator.claim(SERVER, 443, 3000)
    assert allocator.take(SERVER, 443) == 2000
    allocator.release(SERVER, 443, 3000)
    assert len(allocator) == 1


def test_a_release_too_many_is_a_mistake():
    allocator = PortAllocator(PortRange(2000, 2002))
    port = allocator.take(SERVER, 443)
    for other in {2000, 2001, 2002} - {port}:
        with pytest.raises(KeyError):
            allocator.release(SERVER, 443, other)
    allocator.release(SERVER, 443, port)
    with pytest.raises(KeyError):
        allocator.release(SERVER, 443, port)


@given(st.randoms(use_true_random=False))
def test_no_order_of_calls_gives_a_tuple_twice_or_loses_one(order: random.Random):
    allocator = PortAllocator(PortRange(2000, 2004))
    live: set[tuple[bytes, int]] = set()
    for _ in range(200):
        remote = order.choice((SERVER, OTHER))
        mine = sorted(port for owner, port in live if owner == remote)
        if order.random() < 0.4 and mine:
            port = order.choice(mine)
            allocator.release(remote, 443, port)
            live.remove((remote, port))
        elif len(mine) == 5:
            with pytest.raises(OSError, match="every port"):
                allocator.take(remote, 443)
        elif order.random() < 0.3:
            port = order.choice(sorted(set(range(2000, 2005)) - set(mine)))
            allocator.claim(remote, 443, port)
            live.add((remote, port))
        else:
            port = allocator.take(remote, 443)
            assert (remote, port) not in live
            live.add((remote, port))
        assert len(allocator) == len(live)


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 99)), max_size=20))
def test_range_lists_survive_writing_and_reading(pairs: list[tuple[int, int]]):
    ranges = [(first, min(65535, first + more)) for first, more in pairs]
    read = list(parse_ranges(format_ranges(ranges)))
    assert {port for first, last in read for port in range(first, last + 1)} == {
        port for first, last in ranges for port in range(first, last + 1)
    }
    assert all(after[0] > before[1] + 1 for before, after in pairwise(read))


def test_a_range_that_nobody_is_given_needs_no_reservation(network: OwnNetwork):
    set_sysctl(AUTOMATIC, "32768 60999")
    reserve(PortRange(16384, 32767))
    assert sysctl(RESERVED) == ""


def test_a_reservation_keeps_what_was_reserved_and_holds(network: OwnNetwork):
    set_sysctl(AUTOMATIC, "30000 30020")
    set_sysctl(RESERVED, "8080,30000-30002,30010")
    reserve(PortRange(30003, 30015))
    assert sysctl(RESERVED) == "8080,30000-30015"
    reserve(PortRange(30003, 30015))
    given = set()
    sockets = [socket.socket() for _ in range(5)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
        given.add(sock.getsockname()[1])
        sock.close()
    assert given <= set(range(30016, 30021))


def test_a_reservation_that_cannot_be_written_says_the_command(network: OwnNetwork):
    set_sysctl(AUTOMATIC, "30000 30020")
    set_sysctl(RESERVED, "8080")
    error = error_of_nobody(lambda: reserve(PortRange(16384, 32767)))
    assert isinstance(error, SpliceRefused)
    assert "sysctl -w net.ipv4.ip_local_reserved_ports=8080,16384-32767" in str(error)
    assert sysctl(RESERVED) == "8080"


def test_listeners_in_the_range_are_found_except_those_of_loopback(network: OwnNetwork):
    listening = [
        socket.create_server(("0.0.0.0", 20000)),
        socket.create_server(("::", 20001), family=socket.AF_INET6),
        socket.create_server(("127.0.0.1", 20002)),
        socket.create_server(("::1", 20003), family=socket.AF_INET6),
        socket.create_server(("0.0.0.0", 15000)),
    ]
    assert listeners_within(PortRange(16384, 32767)) == [20000, 20001]
    for sock in listening:
        sock.close()
    assert listeners_within(PortRange(16384, 32767)) == []
