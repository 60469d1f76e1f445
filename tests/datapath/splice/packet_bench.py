"""The splice's programs on a rig: one session, one packet, and all that the packet has changed.

Nothing is attached: BPF_PROG_TEST_RUN runs a program on a packet. The packets are scapy's, as are the checksums that
the results are compared with.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from socket import IPPROTO_TCP, if_nametoindex

from scapy.layers.inet import IP, TCP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum
from tests.datapath.splice.two_hosts import packed
from tests.own_network import own_bpffs, own_network

from msocks.datapath.splice import libbpf
from msocks.datapath.splice.events import Event, EventType
from msocks.datapath.splice.layout import NO_FIN, SERVER, Leg, LegFlag, LegState, Session, SessionState, network_port
from msocks.datapath.splice.loader import SpliceProgram, load
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.segments import ACK
from msocks.datapath.splice.tables import Tables, flow_key

NEXT, DROP, REDIRECT = -1, 2, 7
MOBILE, SECOND_MOBILE = 1, 2
WRAP = 1 << 32
LOOPBACK = 1
PORTS = PortRange(16384, 16484)
LISTENER = 1080
NEXT_HOPS = {SERVER: "02:00:00:00:00:05", MOBILE: "02:00:00:00:00:15", SECOND_MOBILE: "02:00:00:00:00:25"}
OWN = {SERVER: "02:00:00:00:00:06", MOBILE: "02:00:00:00:00:16", SECOND_MOBILE: "02:00:00:00:00:26"}
# (remote, local) by leg and family.
ENDS = {
    (SERVER, 4): (("198.51.100.7", 443), ("192.0.2.1", 16400)),
    (SERVER, 6): (("2001:db8:7::7", 443), ("2001:db8::1", 16400)),
    (MOBILE, 4): (("203.0.113.9", 50123), ("192.0.2.1", LISTENER)),
    (MOBILE, 6): (("2001:db8:9::9", 50123), ("2001:db8::1", LISTENER)),
    (SECOND_MOBILE, 4): (("203.0.113.10", 50124), ("192.0.2.1", LISTENER)),
    (SECOND_MOBILE, 6): (("2001:db8:9::10", 50124), ("2001:db8::1", LISTENER)),
}
FAMILIES = [(4, 4), (6, 6), (4, 6), (6, 4)]

_ETHERNET = 14
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_CONTEXT = 192  # struct __sk_buff
_AT_MARK, _AT_IFINDEX, _AT_GSO_SEGMENTS, _AT_GSO_SIZE = 8, 40, 164, 176


@dataclass(frozen=True, slots=True)
class Segment:
    """TCP and what of IP goes through with it, by the numbers that stand in the packet."""

    sequence: int
    acknowledgment: int
    flags: int = ACK
    window: int = 500
    options: bytes = b""
    payload: bytes = b""
    hop_limit: int = 64
    service: int = 0
    urgent: int = 0
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame, read to the last bit."""

    destination_mac: str
    source_mac: str
    source: tuple[str, int]
    destination: tuple[str, int]
    segment: Segment
    label: int  # IPv4: identification and fragment field; IPv6: flow label
    padding: bytes = b""
    ip_checksum: bool = True
    tcp_checksum: bool = True


@dataclass(frozen=True, slots=True)
class Told:
    """An event, without what it quotes."""

    type: EventType
    leg: int
    offset: int


@dataclass(frozen=True, slots=True)
class Result:
    """What one run has done; counters that stayed are not named."""

    verdict: int
    frame: bytes
    drops: dict[str, int]
    told: list[Told]
    records: list[bytes] = field(default_factory=list)

    @property
    def seen(self) -> Seen:
        assert self.verdict == REDIRECT, (self.verdict, self.drops)
        return read(self.frame)


def signed(value: int, bits: int = 32) -> int:
    """The number next to 0 that is `value` modulo 2**bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def frame(
    source: tuple[str, int], destination: tuple[str, int], segment: Segment, *, ident: int = 0x1234, label: int = 0
) -> bytes:
    """An Ethernet frame for the loopback's address, made by scapy."""
    tcp = TCP(
        sport=source[1],
        dport=destination[1],
        seq=segment.sequence % WRAP,
        ack=segment.acknowledgment % WRAP,
        dataofs=5 + len(segment.options) // 4,
        reserved=segment.reserved >> 1,
        flags=segment.flags | (segment.reserved & 1) << 8,
        window=segment.window,
        urgptr=segment.urgent,
    )
    ethernet = Ether(dst="00:00:00:00:00:00", src="02:00:00:00:00:99")
    if ":" in source[0]:
        ip: Packet = IPv6(src=source[0], dst=destination[0], hlim=segment.hop_limit, tc=segment.service, fl=label)
    else:
        ip = IP(
            src=source[0], dst=destination[0], ttl=segment.hop_limit, tos=segment.service, id=ident, flags="DF", proto=6
        )
    return bytes(ethernet / ip / tcp / Raw(segment.options + segment.payload))


def read(data: bytes) -> Seen:
    """Take a frame apart; it has to be one that a receiver would look at. Checksums are recomputed by scapy."""
    kind = int.from_bytes(data[12:14], "big")
    ip = data[_ETHERNET:]
    version = ip[0] >> 4
    assert kind == _ETHERTYPES[version]
    if version == 4:
        assert ip[0] == 0x45
        total, label = struct.unpack_from("!HI", ip, 2)
        hop_limit, service, headers = ip[8], ip[1], 20
        assert ip[9] == IPPROTO_TCP
        addresses = ip[12:16], ip[16:20]
        ip_checksum = checksum(ip[:20]) == 0
    else:
        word, length, following, hop_limit = struct.unpack_from("!IHBB", ip)
        assert following == IPPROTO_TCP
        total, label, service, headers = length + 40, word & 0xFFFFF, word >> 20 & 0xFF, 40
        addresses = ip[8:24], ip[24:40]
        ip_checksum = True
    assert total <= len(ip)
    tcp, padding = ip[headers:total], ip[total:]
    source, destination = (str(ip_address(address)) for address in addresses)
    if version == 4:
        rest = in4_chksum(IPPROTO_TCP, IP(src=source, dst=destination, len=total, ihl=5), tcp)
    else:
        rest = in6_chksum(IPPROTO_TCP, IPv6(src=source, dst=destination, nh=IPPROTO_TCP), tcp)
    source_port, destination_port, sequence, acknowledgment, size, flags, window, _, urgent = struct.unpack_from(
        "!HHIIBBHHH", tcp
    )
    behind = (size >> 4) * 4
    assert 20 <= behind <= len(tcp)
    mac = data[:_ETHERNET].hex(":")
    return Seen(
        destination_mac=mac[:17],
        source_mac=mac[18:35],
        source=(source, source_port),
        destination=(destination, destination_port),
        segment=Segment(
            sequence=sequence,
            acknowledgment=acknowledgment,
            flags=flags,
            window=window,
            options=tcp[20:behind],
            payload=tcp[behind:],
            hop_limit=hop_limit,
            service=service,
            urgent=urgent,
            reserved=size & 15,
        ),
        label=label,
        padding=padding,
        ip_checksum=ip_checksum,
        tcp_checksum=rest == 0,
    )


class Rig:
    """The loaded programs and the tables, with one session in it."""

    def __init__(self, program: SpliceProgram, tables: Tables, interface: int) -> None:
        self.program = program
        self.tables = tables
        self.interface = interface
        self._ring = libbpf.RingBuffer(program.map("events"))
        self._flows: list[bytes] = []
        slot = tables.take_slot()
        assert slot is not None
        self.slot = slot
        self.session: Session = tables.session(slot)

    def splice(self, mobile: int = 4, server: int = 4) -> Session:
        """An open session between legs of these families, in the middle of its streams; the tests change it."""
        session = self.session
        self.forget()
        self._ring.consume(lambda _record: None)
        incarnation = session.incarnation
        ctypes.memset(ctypes.addressof(session), 0, ctypes.sizeof(session))
        session.incarnation = incarnation + 1
        session.state, session.active, session.last_ns = SessionState.OPEN, MOBILE, time.monotonic_ns()
        self.leg(SERVER, server)
        self.leg(MOBILE, mobile)
        session.legs[SERVER].arrived, session.legs[MOBILE].arrived = 9000, 5000
        for stream, sent, acked in ((session.up, 5000, 4000), (session.down, 9000, 8000)):
            stream.sent, stream.acked, stream.edge, stream.widest = sent, acked, acked + 60000, 60000
            stream.fin, stream.packets = NO_FIN, 3
        session.mobile_edge = session.down.edge
        return session

    def leg(self, number: int, family: int) -> Leg:
        """Fill in a live leg, and put its flow."""
        leg: Leg = self.session.legs[number]
        remote, local = ((packed(address), port) for address, port in ENDS[number, family])
        leg.remote[:], leg.remote_port = remote[0], network_port(remote[1])
        leg.local[:], leg.local_port = local[0], network_port(local[1])
        leg.family, leg.state, leg.generation = family, LegState.LIVE, 70 + number
        leg.in_scale = leg.out_scale = 7
        leg.in_base, leg.out_base = 0x10000 * (number + 1), 0x20000000 * (number + 1)
        leg.flags = LegFlag.TIMESTAMPS | LegFlag.SACK
        if number != SERVER:
            leg.flags |= LegFlag.SHIFT_IN_SET | LegFlag.SHIFT_OUT_SET
            leg.shift_in, leg.shift_out = 0x01000000, 0x02000000
        leg.ts_in, leg.ts_out = 0x0A000000 * (number + 1), 0x0B000000 * (number + 1)
        path = leg.path
        path.ifindex, path.mtu, path.ethernet, path.known = self.interface, 1500, 1, 1
        path.next_hop[:] = bytes.fromhex(NEXT_HOPS[number].replace(":", ""))
        path.own[:] = bytes.fromhex(OWN[number].replace(":", ""))
        path.fresh_until = time.monotonic_ns() + 10**15
        key = flow_key(remote, local)
        self.tables.put_flows([(key, number)], self.slot)
        self._flows.append(key)
        return leg

    def forget(self) -> None:
        """Nobody finds the session any more by what arrives."""
        for key in self._flows:
            self.tables.delete_flow(key)
        self._flows.clear()

    def segment(self, leg: int, offset: int, acks: int, flags: int = ACK, **fields: object) -> Segment:
        """What the peer of a leg says: data from `offset` of its stream, the other one acknowledged up to `acks`."""
        numbers = self.session.legs[leg]
        segment = Segment((numbers.in_base + offset) % WRAP, (numbers.out_base + acks) % WRAP, flags)
        return replace(segment, **fields)  # type: ignore[arg-type]

    def frame(self, leg: int, segment: Segment) -> bytes:
        """The same as it arrives."""
        remote, local = ENDS[leg, self.session.legs[leg].family]
        return frame(remote, local, segment)

    def outgoing(self, leg: int, segment: Segment) -> bytes:
        """What this host's kernel would send on a leg."""
        remote, local = ENDS[leg, self.session.legs[leg].family]
        return frame(local, remote, segment)

    def run(
        self,
        data: bytes,
        *,
        program: str = "splice_ingress",
        gso_size: int = 0,
        mark: int = 0,
        ifindex: int = LOOPBACK,
    ) -> Result:
        """Run a program on a frame."""
        context = bytearray(_CONTEXT)
        struct.pack_into("=I", context, _AT_MARK, mark)
        struct.pack_into("=I", context, _AT_IFINDEX, ifindex)
        struct.pack_into("=I", context, _AT_GSO_SIZE, gso_size)
        struct.pack_into("=I", context, _AT_GSO_SEGMENTS, -(-len(data) // gso_size) if gso_size else 0)
        records: list[bytes] = []
        before = self.tables.drops()
        verdict, out, _ = libbpf.run(self.program.program(program), data, bytes(context))
        after = self.tables.drops()
        self._ring.consume(records.append)
        told = [event for event in map(Event.from_buffer_copy, records) if event.type != EventType.FREED]
        for event in told:
            assert (event.slot, event.incarnation) == (self.slot, self.session.incarnation)
        return Result(
            verdict,
            out,
            {name: after[name] - count for name, count in before.items() if after[name] != count},
            [Told(EventType(event.type), event.leg, signed(event.offset, 64)) for event in told],
            records,
        )

    def snapshot(self) -> Session:
        """The session as it is now, to keep."""
        return Session.from_buffer_copy(bytes(self.session))

    def close(self) -> None:
        self._ring.close()
        del self.session


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """In a network and on a BPF file system of its own."""
    with own_network() as network, own_bpffs() as pins:
        network.add_veth("cable")
        program = load(Path(pins) / "rig", slots=4)
        tables = Tables(program, ports=PORTS, half_closed_s=60)
        try:
            tables.add_listener(LISTENER)
            made = Rig(program, tables, if_nametoindex("cable"))
            yield made
            made.close()
        finally:
            tables.close()
            program.unload()
