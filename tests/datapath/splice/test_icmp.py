"""Errors that a real kernel makes are read; errors made here are believed by a real kernel."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.datapath.splice.two_hosts import HERE, IP_MTU, THERE, Capture, TwoHosts, in_flight, packed, set_sysctl

from msocks.datapath.splice.icmp import (
    IcmpError,
    Trouble,
    error_packet,
    fragmentation_needed,
    parse_error,
    translate,
    translated_mtu,
)
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.segments import ACK, PSH, segment

IPV4, IPV6 = socket.AF_INET, socket.AF_INET6
# Beyond the other host, which is their router.
BEYOND = {IPV4: "198.51.100.7", IPV6: "2001:db8:1::7"}
NETWORK = {IPV4: "198.51.100.0/24", IPV6: "2001:db8:1::/64"}
FORWARDING = {IPV4: "net.ipv4.conf.all.forwarding", IPV6: "net.ipv6.conf.all.forwarding"}
IP_RECVERR, IPV6_RECVERR = 11, 25


@dataclass
class Path:
    """A way from here over the other host, which does to packets what it is told."""

    hosts: TwoHosts
    family: socket.AddressFamily
    output: RawOutput
    capture: Capture

    def router(self, route: str) -> None:
        with self.hosts.there():
            self.hosts.ip(f"route replace {route}")

    def answer(self, payload: bytes = b"x", hop_limit: int = 64) -> IcmpError:
        """What is said of a segment to an address beyond."""
        packet = segment(
            source=(packed(HERE[self.family]), 20000),
            destination=(packed(BEYOND[self.family]), 443),
            sequence=0x89ABCDEF,
            acknowledgment=1,
            flags=ACK | PSH,
            window=100,
            payload=payload,
            hop_limit=hop_limit,
        )
        assert self.output.send(packet)
        error = next(error for error in map(parse_error, self.capture.packets(2)) if error)
        assert error.family == self.family
        assert error.reporter == packed(THERE[self.family])
        assert error.source == (packed(HERE[self.family]), 20000)
        assert error.destination == (packed(BEYOND[self.family]), 443)
        assert error.sequence == 0x89ABCDEF
        return error


@pytest.fixture
def path(hosts: TwoHosts, family: socket.AddressFamily) -> Iterator[Path]:
    with hosts.there():
        set_sysctl(FORWARDING[family], "1")
    hosts.ip(f"route add {NETWORK[family]} via {THERE[family]}")
    output, capture = RawOutput(0), Capture("cable")
    yield Path(hosts, family, output, capture)
    output.close()
    capture.close()


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        ("unreachable", {IPV4: Trouble.HOST_UNREACHABLE, IPV6: Trouble.NO_ROUTE}),
        ("prohibit", {IPV4: Trouble.PROHIBITED, IPV6: Trouble.PROHIBITED}),
    ],
)
def test_a_router_without_a_way_is_understood(path: Path, kind: str, trouble: dict):
    path.router(f"{kind} {NETWORK[path.family]}")
    error = path.answer()
    assert (error.trouble, error.mtu) == (trouble[path.family], 0)


def test_a_router_with_a_narrow_way_tells_its_mtu(path: Path):
    path.router(f"{NETWORK[path.family]} via {HERE[path.family]} mtu lock 1300")
    error = path.answer(bytes(1400))
    assert (error.trouble, error.mtu) == (Trouble.TOO_BIG, 1300)


def test_a_packet_that_has_gone_too_far_is_understood(path: Path):
    path.router(f"{NETWORK[path.family]} via {HERE[path.family]}")
    assert path.answer(hop_limit=1).trouble is Trouble.HOPS_EXCEEDED


@pytest.mark.parametrize("quoting", ["as it was", "header only"])
def test_the_sender_believes_that_its_packets_are_too_big(hosts: TwoHosts, family: socket.AddressFamily, quoting: str):
    near, far = hosts.connection(family)
    with near, far:
        assert far.getsockopt(*IP_MTU[family]) == 1500
        output = RawOutput(0)
        with in_flight(far) as sent:
            quoted = sent if quoting == "as it was" else sent[: {IPV4: 40, IPV6: 60}[family]]
            assert output.send(fragmentation_needed(router=packed(HERE[family]), quoted=quoted, mtu=1400))
        output.close()
        near.sendall(b"y")  # behind it on the same cable
        assert far.recv(1) == b"y"
        assert far.getsockopt(*IP_MTU[family]) == 1400


@pytest.mark.parametrize("trouble", [trouble for trouble in Trouble if trouble is not Trouble.TOO_BIG])
def test_the_sender_is_told_every_other_trouble(hosts: TwoHosts, family: socket.AddressFamily, trouble: Trouble):
    """A program that asks for it gets an error."""
    near, far = hosts.connection(family)
    with near, far:
        level, option = {IPV4: (socket.IPPROTO_IP, IP_RECVERR), IPV6: (socket.IPPROTO_IPV6, IPV6_RECVERR)}[family]
        far.setsockopt(level, option, 1)
        output = RawOutput(0)
        with in_flight(far) as sent:
            assert output.send(error_packet(trouble, router=packed(HERE[family]), quoted=sent))
        output.close()
        poll = select.poll()
        poll.register(far, 0)
        assert poll.poll(2000) == [(far.fileno(), select.POLLERR)]
        assert far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


ENDS = {
    family: {"source": (packed(THERE[family]), 4000), "destination": (packed(HERE[family]), 1080)}
    for family in (IPV4, IPV6)
}


def quoted_packet(family: socket.AddressFamily, payload: bytes = b"") -> bytes:
    ends = ENDS[family]
    return segment(
        source=ends["source"],
        destination=ends["destination"],
        sequence=77,
        acknowledgment=0,
        flags=ACK,
        window=0,
        payload=payload,
    )


@pytest.mark.parametrize("trouble", Trouble)
@pytest.mark.parametrize("other", [IPV4, IPV6], ids=lambda family: family.name)
def test_what_one_leg_is_told_the_other_is_told(
    family: socket.AddressFamily, other: socket.AddressFamily, trouble: Trouble
):
    about_one = error_packet(
        trouble, router=packed(HERE[other]), quoted=quoted_packet(other), mtu=1400 * (trouble is Trouble.TOO_BIG)
    )
    error = parse_error(about_one)
    assert error is not None
    about_other = translate(error, router=packed(HERE[family]), quoted=quoted_packet(family))
    mtu = {(IPV4, IPV6): 1420, (IPV6, IPV4): 1380}.get((other, family), 1400)
    assert parse_error(about_other) == IcmpError(
        trouble=trouble,
        family=family,
        reporter=packed(HERE[family]),
        source=ENDS[family]["source"],
        destination=ENDS[family]["destination"],
        sequence=77,
        mtu=mtu if trouble is Trouble.TOO_BIG else 0,
    )


@pytest.mark.parametrize(
    ("mtu", "from_family", "to_family", "expected"),
    [
        (1500, IPV4, IPV4, 1500),
        (1500, IPV6, IPV6, 1500),
        (1500, IPV4, IPV6, 1520),
        (1500, IPV6, IPV4, 1480),
        (1000, IPV4, IPV6, 1280),
        (1000, IPV6, IPV6, 1280),
        (0, IPV6, IPV4, 1260),
        (0, IPV4, IPV4, 68),
        (0xFFFFFFFF, IPV6, IPV4, 0xFFFF),
    ],
)
def test_an_ipv6_header_is_20_bytes_longer(mtu: int, from_family, to_family, expected: int):
    assert translated_mtu(mtu, from_family, to_family) == expected


def test_an_error_is_never_too_large_itself(family: socket.AddressFamily):
    packet = fragmentation_needed(router=packed(HERE[family]), quoted=quoted_packet(family, bytes(9001)), mtu=1400)
    assert len(packet) == {IPV4: 576, IPV6: 1280}[family]
    assert parse_error(packet)
    odd = fragmentation_needed(router=packed(HERE[family]), quoted=quoted_packet(family, b"x"), mtu=1400)
    assert parse_error(odd)


def test_a_router_of_the_wrong_family_is_a_mistake():
    with pytest.raises(ValueError, match="one IP version"):
        fragmentation_needed(router=packed(HERE[IPV6]), quoted=quoted_packet(IPV4), mtu=1400)


def test_an_old_router_that_tells_no_mtu_is_estimated():
    for length, plateau in ((1500, 1492), (1492, 1006), (60, 68)):
        packet = fragmentation_needed(router=packed(HERE[IPV4]), quoted=quoted_packet(IPV4, bytes(length - 40)), mtu=0)
        error = parse_error(packet)
        assert error is not None
        assert error.mtu == plateau


def test_a_damaged_error_says_nothing(family: socket.AddressFamily):
    packet = fragmentation_needed(router=packed(HERE[family]), quoted=quoted_packet(family), mtu=1400)
    begin = {IPV4: 20, IPV6: 40}[family]
    for position in range(begin, len(packet)):
        damaged = bytearray(packet)
        damaged[position] ^= 0x40
        assert parse_error(bytes(damaged)) is None
    for length in range(len(packet)):
        assert parse_error(packet[:length]) is None


def test_errors_about_fragments_and_other_protocols_are_not_ours():
    for position, value in ((7, 1), (9, socket.IPPROTO_UDP), (0, 0x65)):
        quoted = bytearray(quoted_packet(IPV4))
        quoted[position] = value
        if position:
            assert parse_error(fragmentation_needed(router=packed(HERE[IPV4]), quoted=bytes(quoted), mtu=1400)) is None
    assert parse_error(quoted_packet(IPV4)) is None
    assert parse_error(quoted_packet(IPV6)) is None
    echo = struct.pack("!BBHHH", 8, 0, 0, 0, 0)
    assert parse_error(quoted_packet(IPV4)[:9] + b"\x01" + quoted_packet(IPV4)[10:20] + echo) is None


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x60", b"\x4f"]))
def test_nothing_that_comes_raises(data: bytes, begin: bytes):
    parse_error(begin + data)


@given(st.data())
def test_nothing_behind_a_right_checksum_raises(data: st.DataObject):
    family = data.draw(st.sampled_from([IPV4, IPV6]))
    quoted = data.draw(st.binary(max_size=70))
    head = b"\x45" if family == IPV4 else b"\x60"
    packet = fragmentation_needed(router=packed(HERE[family]), quoted=head + bytes(60), mtu=1400)
    assert parse_error(packet) is None  # no TCP within
    cut = {IPV4: 20, IPV6: 40}[family]
    error_packet(Trouble.NO_ROUTE, router=packed(HERE[family]), quoted=head + quoted + bytes(40))
    parse_error(packet[: cut + 8] + quoted)
