"""What both ends are told of packets that did not get through: read byte by byte, and believed by a real kernel."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.datapath.splice.packet_bench import Rig
from tests.datapath.splice.two_hosts import HERE, IP_MTU, THERE, Capture, TwoHosts, in_flight, packed

from msocks.datapath.splice.events import Event, EventType, PacketEvent
from msocks.datapath.splice.icmp import Trouble, error_packet
from msocks.datapath.splice.layout import SERVER, Leg, LegState, Session, network_port
from msocks.datapath.splice.path_errors import tell_sender
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.segments import ACK, End, segment
from msocks.datapath.splice.told_mtus import ToldMtus

IPV4, IPV6 = socket.AF_INET, socket.AF_INET6
BOTH = pytest.mark.parametrize("other", [IPV4, IPV6], ids=["across IPv4", "across IPv6"])
MOBILE = 1
# Where the stream that comes in on a leg has its byte 0, and that which leaves on it: the first wraps soon.
IN_BASE, OUT_BASE = 0xFFFFFF00, 0x7FFFFFF0
SENT, ACKED = 5000, 1000
SILENCE_S = 0.2
HEADER = {IPV4: 20, IPV6: 40}


@dataclass
class Splice:
    """A session whose two ends are both on the other host, and what comes there."""

    session: Session
    output: RawOutput
    capture: Capture
    told_mtus: ToldMtus

    def leg(self, which: int, family: socket.AddressFamily, local_port: int, remote_port: int) -> Leg:
        leg: Leg = self.session.legs[which]
        leg.family = 4 if family == IPV4 else 6
        leg.local[:], leg.remote[:] = packed(HERE[family]), packed(THERE[family])
        leg.local_port, leg.remote_port = network_port(local_port), network_port(remote_port)
        leg.in_base, leg.out_base = IN_BASE + which, OUT_BASE + which
        leg.state = LegState.LIVE
        return leg

    def tell(self, kind: EventType, which: int, packet: bytes, offset: int = 0) -> None:
        event = PacketEvent()
        event.event = Event(type=kind, leg=which, offset=offset)
        event.length = event.copied = len(packet)
        event.packet[: len(packet)] = packet
        tell_sender(self.session, event, self.output, self.told_mtus)

    def told(self, wait_s: float = 2) -> bytes | None:
        """The ICMP error that the other host gets next."""
        for packet in self.capture.packets(wait_s):
            if packet[0] >> 4 == 4 and packet[9] == 1 and packet[20] in (3, 11):
                return packet
            if packet[0] >> 4 == 6 and packet[6] == 58 and packet[40] < 128:
                return packet
        return None


@pytest.fixture
def splice(hosts: TwoHosts, bare_rig: Rig) -> Iterator[Splice]:
    session = Session()
    session.active = MOBILE
    for stream in (session.up, session.down):
        stream.sent, stream.acked = SENT, ACKED
    output = RawOutput(0)
    with hosts.capture_there() as capture:
        yield Splice(session, output, capture, ToldMtus(bare_rig.program.map("told_mtus")))
    output.close()


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for position in range(0, len(data), 2):
        word = data[position : position + 2].ljust(2, b"\0")
        total += word[0] << 8 | word[1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Told:
    """An ICMP error, read by hand."""

    kind: tuple[int, int]
    mtu: int
    router: bytes
    receiver: bytes
    source: End
    destination: End
    sequence: int


def read(packet: bytes | None, family: socket.AddressFamily) -> Told:
    assert packet is not None
    header = HEADER[family]
    icmp, quoted = packet[header:], packet[header + 8 :]
    if family == IPV4:
        assert packet[0] == 0x45
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        assert ones_complement_sum(packet[:20]) == 0xFFFF
        assert ones_complement_sum(icmp) == 0xFFFF
        prefix, addresses = bytes(10) + b"\xff\xff", slice(12, 20)
    else:
        assert int.from_bytes(packet[4:6], "big") == len(icmp)
        pseudo_header = packet[8:40] + struct.pack("!IHBB", len(icmp), 0, 0, 58)
        assert ones_complement_sum(pseudo_header + icmp) == 0xFFFF
        prefix, addresses = b"", slice(8, 40)
    middle = (addresses.stop - addresses.start) // 2

    def pair(ip: bytes) -> tuple[bytes, bytes]:
        both = ip[addresses]
        return prefix + both[:middle], prefix + both[middle:]

    router, receiver = pair(packet)
    source, destination = pair(quoted)
    source_port, destination_port, sequence = struct.unpack_from("!HHI", quoted, header)
    mtu = int.from_bytes(icmp[4:8], "big")  # in IPv4 its upper half is unused, and 0
    return Told(
        (icmp[0], icmp[1]),
        mtu,
        router,
        receiver,
        (source, source_port),
        (destination, destination_port),
        sequence,
    )


def error_about(leg: Leg, family: socket.AddressFamily, offset: int, trouble: Trouble, mtu: int = 0) -> bytes:
    """As a router makes it of a segment that left on the leg."""
    quoted = segment(
        source=(bytes(leg.local), network_port(leg.local_port)),
        destination=(bytes(leg.remote), network_port(leg.remote_port)),
        sequence=(leg.out_base + offset) & 0xFFFFFFFF,
        acknowledgment=7,
        flags=ACK,
        window=100,
        payload=bytes(8),
    )
    return error_packet(trouble, router=packed(THERE[family]), quoted=quoted, mtu=mtu)


TOO_BIG = {IPV4: (3, 4), IPV6: (2, 0)}


@BOTH
@pytest.mark.parametrize("from_server", [True, False], ids=["from the server", "from the mobile"])
def test_a_segment_that_does_not_fit_the_other_leg_is_answered(
    splice: Splice, family: socket.AddressFamily, other: socket.AddressFamily, from_server: bool
):
    which, across = (SERVER, MOBILE) if from_server else (MOBILE, SERVER)
    leg = splice.leg(which, family, 17000, 443)
    splice.leg(across, other, 1080, 50000)
    came = segment(
        source=(bytes(leg.remote), 443),
        destination=(bytes(leg.local), 17000),
        sequence=99,
        acknowledgment=1,
        flags=ACK,
        window=5,
        payload=bytes(range(200)) * 5,
    )[:1280]
    splice.tell(EventType.TOO_BIG, which, came, 1400)
    packet = splice.told()
    told = read(packet, family)
    assert packet is not None
    assert came.startswith(packet[HEADER[family] + 8 :])
    payload = 1400 - 20 - HEADER[other]  # that the next link takes
    assert (told.kind, told.mtu) == (TOO_BIG[family], payload + 20 + HEADER[family])
    assert (told.router, told.receiver) == (packed(HERE[family]), packed(THERE[family]))


@BOTH
@pytest.mark.parametrize("to_server", [True, False], ids=["server leg", "mobile leg"])
@pytest.mark.parametrize("trouble", [Trouble.TOO_BIG, Trouble.NO_ROUTE, Trouble.HOST_UNREACHABLE])
def test_an_error_of_one_leg_is_told_to_the_end_of_the_other(
    splice: Splice, family: socket.AddressFamily, other: socket.AddressFamily, to_server: bool, trouble: Trouble
):
    which, across = (SERVER, MOBILE) if to_server else (MOBILE, SERVER)
    leg = splice.leg(which, other, 17000, 443)
    splice.leg(across, family, 1080, 50000)
    mtu = 1400 if trouble is Trouble.TOO_BIG else 0
    splice.tell(EventType.ICMP, which, error_about(leg, other, 1500, trouble, mtu))
    kinds = {
        Trouble.TOO_BIG: TOO_BIG,
        Trouble.NO_ROUTE: {IPV4: (3, 0), IPV6: (1, 0)},
        Trouble.HOST_UNREACHABLE: {IPV4: (3, 1), IPV6: (1, 3)},
    }
    assert read(splice.told(), family) == Told(
        kind=kinds[trouble][family],
        mtu=mtu and 1400 - HEADER[other] + HEADER[family],
        router=packed(HERE[family]),
        receiver=packed(THERE[family]),
        source=(packed(THERE[family]), 50000),
        destination=(packed(HERE[family]), 1080),
        sequence=(IN_BASE + across + 1500) % (1 << 32),
    )
    assert leg.path_mtu == mtu
    assert splice.session.legs[across].path_mtu == 0


@pytest.mark.parametrize("trouble", [Trouble.PORT_UNREACHABLE, Trouble.PROHIBITED, Trouble.HOPS_EXCEEDED])
def test_an_error_that_an_end_may_take_as_final_goes_no_further(
    splice: Splice, family: socket.AddressFamily, trouble: Trouble
):
    leg = splice.leg(SERVER, family, 17000, 443)
    splice.leg(MOBILE, family, 1080, 50000)
    splice.tell(EventType.ICMP, SERVER, error_about(leg, family, 1500, trouble))
    assert splice.told(SILENCE_S) is None


@pytest.mark.parametrize(
    ("offset", "believed"), [(ACKED - 1, False), (ACKED, True), (SENT, True), (SENT + 1, False), (1 << 31, False)]
)
def test_only_what_is_in_flight_can_be_in_trouble(
    splice: Splice, family: socket.AddressFamily, offset: int, believed: bool
):
    # Of 2^32 bytes and more, the offset counts on and the sequence number begins again.
    splice.session.up.acked += 1 << 33
    splice.session.up.sent += 1 << 33
    leg = splice.leg(SERVER, family, 17000, 443)
    splice.leg(MOBILE, family, 1080, 50000)
    splice.tell(EventType.ICMP, SERVER, error_about(leg, family, offset, Trouble.TOO_BIG, 1300))
    assert (splice.told(2 if believed else SILENCE_S) is not None) is believed
    assert leg.path_mtu == (1300 if believed else 0)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((1400,), {IPV4: 1400, IPV6: 1400}),
        ((1400, 1300), {IPV4: 1300, IPV6: 1300}),
        ((1300, 1400), {IPV4: 1300, IPV6: 1300}),
        ((68,), {IPV4: 576, IPV6: 1280}),
    ],
)
def test_the_path_mtu_of_a_leg_only_falls_and_not_below_what_is_sensible(
    splice: Splice, family: socket.AddressFamily, told: tuple[int, ...], expected: dict
):
    leg = splice.leg(SERVER, family, 17000, 443)
    splice.leg(MOBILE, IPV4, 1080, 50000)
    for mtu in told:
        splice.tell(EventType.ICMP, SERVER, error_about(leg, family, 1500, Trouble.TOO_BIG, mtu))
    assert leg.path_mtu == expected[family]


@pytest.mark.parametrize("mtu", [0x10000, 0x10001, 0xFFFFFFFF])
def test_an_mtu_that_no_field_holds_lowers_nothing(splice: Splice, mtu: int):
    leg = splice.leg(SERVER, IPV6, 17000, 443)
    splice.leg(MOBILE, IPV6, 1080, 50000)
    splice.tell(EventType.ICMP, SERVER, error_about(leg, IPV6, 1500, Trouble.TOO_BIG, mtu))
    assert leg.path_mtu == 0xFFFF


def test_ipv6_allows_1280_whatever_is_claimed(splice: Splice):
    leg = splice.leg(SERVER, IPV6, 17000, 443)
    splice.leg(MOBILE, IPV4, 1080, 50000)
    splice.tell(EventType.ICMP, SERVER, error_about(leg, IPV6, 1500, Trouble.TOO_BIG, 100))
    assert read(splice.told(), IPV4).mtu == 1260


def no_mobile_leg_yet(splice: Splice) -> None:
    splice.session.active = SERVER


def mobile_leg_lost(splice: Splice) -> None:
    splice.session.legs[MOBILE].state = LegState.NONE


@pytest.mark.parametrize("change", [no_mobile_leg_yet, mobile_leg_lost])
@pytest.mark.parametrize("kind", [EventType.ICMP, EventType.TOO_BIG], ids=lambda kind: kind.name)
def test_without_a_mobile_leg_nobody_is_told(splice: Splice, family: socket.AddressFamily, change, kind: EventType):
    leg = splice.leg(SERVER, family, 17000, 443)
    splice.leg(MOBILE, family, 1080, 50000)
    change(splice)
    splice.tell(kind, SERVER, error_about(leg, family, 1500, Trouble.TOO_BIG, 1300), 1300)
    assert splice.told(SILENCE_S) is None
    assert leg.path_mtu == 0


@pytest.mark.parametrize("which", [2, 3, 0xFFFFFFFF])
def test_a_leg_that_was_replaced_says_nothing_of_the_present_one(
    splice: Splice, family: socket.AddressFamily, which: int
):
    splice.leg(SERVER, family, 17000, 443)
    splice.leg(MOBILE, family, 1080, 50000)
    old = splice.leg(2, family, 1080, 50001)
    splice.tell(EventType.ICMP, which, error_about(old, family, 1500, Trouble.TOO_BIG, 1300))
    assert splice.told(SILENCE_S) is None
    assert old.path_mtu == 0


def test_what_is_no_intact_error_is_ignored(splice: Splice, family: socket.AddressFamily):
    leg = splice.leg(SERVER, family, 17000, 443)
    splice.leg(MOBILE, family, 1080, 50000)
    error = error_about(leg, family, 1500, Trouble.TOO_BIG, 1300)
    for packet in (b"", error[:30], error[:-1], error[:-1] + bytes([error[-1] ^ 1])):
        splice.tell(EventType.ICMP, SERVER, packet)
    assert splice.told(SILENCE_S) is None
    assert leg.path_mtu == 0


@BOTH
@pytest.mark.parametrize("kind", [EventType.ICMP, EventType.TOO_BIG], ids=lambda kind: kind.name)
def test_a_server_makes_its_segments_smaller(
    splice: Splice, hosts: TwoHosts, family: socket.AddressFamily, other: socket.AddressFamily, kind: EventType
):
    """Its kernel believes only what quotes a segment of its own that is in flight."""
    near, far = hosts.connection(family)
    with near, far:
        server = splice.leg(SERVER, family, near.getsockname()[1], near.getpeername()[1])
        mobile = splice.leg(MOBILE, other, 1080, 50000)
        with in_flight(far) as sent:
            (sequence,) = struct.unpack_from("!I", sent, HEADER[family] + 4)
            server.in_base = (sequence - 1500) & 0xFFFFFFFF
            if kind is EventType.ICMP:
                splice.tell(kind, MOBILE, error_about(mobile, other, 1500, Trouble.TOO_BIG, 1400))
            else:
                splice.tell(kind, SERVER, sent, 1400)
        near.sendall(b"y")  # behind it on the same cable
        assert far.recv(1) == b"y"
        assert far.getsockopt(*IP_MTU[family]) == 1400 - HEADER[other] + HEADER[family]
