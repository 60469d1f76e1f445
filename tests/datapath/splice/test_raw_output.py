"""What the raw sockets send, as another host receives it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
from tests.datapath.splice.two_hosts import HERE, THERE, TwoHosts, packed
from tests.datapath.splice.unprivileged import error_of_nobody

from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.datapath.splice.segments import ACK, PSH, segment, timestamps
from msocks.protocol.leg import DatapathReason

MARK = 0x4D534F43


@pytest.fixture
def output(hosts: TwoHosts) -> Iterator[RawOutput]:
    output = RawOutput(MARK)
    yield output
    output.close()


def made(family: socket.AddressFamily, payload: bytes = b"x", **ends: str) -> bytes:
    return segment(
        source=(packed(ends.get("source", HERE[family])), 20000),
        destination=(packed(ends.get("destination", THERE[family])), 443),
        sequence=7,
        acknowledgment=8,
        flags=ACK | PSH,
        window=9,
        options=timestamps(1, 2),
        payload=payload,
    )


def test_the_packet_arrives_as_it_was_made(hosts: TwoHosts, output: RawOutput, family: socket.AddressFamily):
    packet = made(family)
    with hosts.capture_there() as capture:
        assert output.send(packet)
        arrived = next(capture.segments(2)).packet
    if family == socket.AF_INET:  # all but the identification and the checksum, which the kernel fills in
        assert (arrived[:4], arrived[6:10], arrived[12:]) == (packet[:4], packet[6:10], packet[12:])
    else:
        assert arrived == packet
    assert not output.refused


def test_a_kernel_takes_the_segment_for_one_of_the_connection(
    hosts: TwoHosts, output: RawOutput, family: socket.AddressFamily
):
    """The checksum is right for a receiver that verifies it: the payload reaches the program."""
    near, far = hosts.connection(family)
    with near, far, hosts.capture_there() as capture:
        near.sendall(b"real")
        assert far.recv(10) == b"real"
        real = next(seen for seen in capture.segments(2) if seen.flags & PSH)
        source, destination = (
            (packed(HERE[family]), near.getsockname()[1]),
            (packed(THERE[family]), far.getsockname()[1]),
        )
        options = real.packet[-4 - 12 : -4]
        made_here = segment(
            source=source, destination=destination, sequence=real.sequence + 4, acknowledgment=real.acknowledgment,
            flags=ACK | PSH, window=500, options=options, payload=b"crafted",
        )  # fmt: skip
        assert output.send(made_here)
        assert far.recv(10) == b"crafted"


def test_what_has_no_way_is_counted_and_not_raised(output: RawOutput, family: socket.AddressFamily):
    far_away = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8:1::1"}[family]
    assert not output.send(made(family, destination=far_away))
    assert output.refused == {errno.ENETUNREACH: 1}
    assert not output.send(made(family, payload=bytes(1500)))
    assert output.refused == {errno.ENETUNREACH: 1, errno.EMSGSIZE: 1}


def test_ipv6_sends_nothing_from_an_address_that_is_gone(output: RawOutput):
    assert not output.send(made(socket.AF_INET6, source="2001:db8:1::1"))
    assert output.refused == {errno.EINVAL: 1}


def test_it_is_routed_as_a_packet_of_its_source_address(hosts: TwoHosts, output: RawOutput):
    """The second address has a table of its own, in which there is no way."""
    family = socket.AF_INET
    hosts.ip("address add 192.0.2.9/32 dev cable\nrule add from 192.0.2.9 unreachable")
    assert not output.send(made(family, source="192.0.2.9"))
    assert output.refused.keys() <= {errno.EHOSTUNREACH, errno.ENETUNREACH}
    assert output.send(made(family))


def test_without_the_privilege_the_error_says_what_to_do():
    error = error_of_nobody(lambda: RawOutput(MARK).close())
    assert isinstance(error, SpliceRefused)
    assert error.reason is DatapathReason.NO_PRIVILEGE
    assert "CAP_NET_RAW" in str(error)
