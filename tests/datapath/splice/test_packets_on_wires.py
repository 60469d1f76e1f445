"""The splice's programs on interfaces: what a test run has not. Marks of the packet, trains, tunnels, neighbours.

The interfaces are TAP and TUN: what is written there arrives, and what leaves can be read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from socket import if_nametoindex

import pytest
from tests.datapath.splice.packet_bench import ENDS, FAMILIES, LISTENER, MOBILE, OWN, PORTS, WRAP, Rig, Seen, read
from tests.datapath.splice.packet_model import Model
from tests.own_network import OwnNetwork, own_bpffs, own_network

from msocks.datapath.splice.events import EventType
from msocks.datapath.splice.hooks import Hooks
from msocks.datapath.splice.layout import SERVER, Session
from msocks.datapath.splice.loader import load
from msocks.datapath.splice.segments import ACK, PSH, timestamps
from msocks.datapath.splice.tables import Tables

_TUNSETIFF = 0x400454CA
_TUN, _TAP, _NO_INFORMATION, _VNET_HEADER = 1, 2, 0x1000, 0x4000
_VNET = struct.Struct("=BBHHHH")
_NEEDS_CHECKSUM, _TRAIN = 1, {4: 1, 6: 4}  # of TCP over IPv4, over IPv6
_WAIT_S = 2
_SILENCE_S = 0.01  # writing returns when the packet has left on the other side
_ROUTER = "02:00:00:00:00:77"


@dataclass(frozen=True, slots=True)
class Wire:
    """The other end of an interface, which has the hardware address of OWN."""

    leg: int
    descriptor: int
    ethernet: bool

    def send(self, data: bytes, gso_size: int = 0) -> None:
        """Let a frame arrive; with `gso_size` as a train whose checksum an interface is to complete."""
        family = data[14] >> 4
        start = 34 if family == 4 else 54
        frame = bytearray(bytes.fromhex(OWN[self.leg].replace(":", "")) + data[6:])
        header = _VNET.pack(0, 0, 0, 0, 0, 0)
        if gso_size:
            size = start + (data[start + 12] >> 4) * 4
            header = _VNET.pack(_NEEDS_CHECKSUM, _TRAIN[family], size, gso_size, start, 16)
            struct.pack_into("!H", frame, start + 16, pseudo_header(data))
        if not self.ethernet:
            assert not gso_size
            os.write(self.descriptor, data[14:])
        else:
            os.write(self.descriptor, header + frame)

    def frames(self, count: int) -> list[Seen]:
        """So many TCP packets that have left, and no more."""
        found: list[Seen] = []
        while select.select([self.descriptor], [], [], _WAIT_S if len(found) < count else _SILENCE_S)[0]:
            data = os.read(self.descriptor, 0x10000)
            if self.ethernet:
                data = data[_VNET.size :]
            else:
                data = bytes(12) + (b"\x08\0" if data[0] >> 4 == 4 else b"\x86\xdd") + data
            if data[12:14] == b"\x08\0" or (data[12:14] == b"\x86\xdd" and data[20] == socket.IPPROTO_TCP):
                found.append(read(data))
        assert len(found) == count
        return found


def pseudo_header(data: bytes) -> int:
    """What stands in the checksum field of a packet that an interface is to complete."""
    if data[14] >> 4 == 4:
        addresses, length = data[26:34], len(data) - 34
    else:
        addresses, length = data[22:54], len(data) - 54
    total: int = sum(struct.unpack(f"!{len(addresses) // 2}H", addresses)) + length + socket.IPPROTO_TCP
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@contextlib.contextmanager
def wire(network: OwnNetwork, leg: int, *, ethernet: bool) -> Iterator[Wire]:
    name = f"wire{leg}"
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _NO_INFORMATION | (_TAP | _VNET_HEADER if ethernet else _TUN)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if ethernet:
            network.ip(f"link set {name} address {OWN[leg]}")
        network.ip(f"link set {name} addrgenmode none mtu 1500 up")
        yield Wire(leg, descriptor, ethernet)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Host:
    """A rig between two wires."""

    rig: Rig
    network: OwnNetwork
    mobile: Wire
    server: Wire

    def splice(self, mobile: int = 4, server: int = 4) -> Session:
        session = self.rig.splice(mobile, server)
        for each in (self.mobile, self.server):
            path = session.legs[each.leg].path
            path.ifindex, path.ethernet = if_nametoindex(f"wire{each.leg}"), each.ethernet
        return session

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.rig.tables.drops().items() if count}


@contextlib.contextmanager
def host(*, mobile: bool = True, server: bool = True) -> Iterator[Host]:
    """With Ethernet on the side of the mobile, of the server."""
    with own_network() as network, own_bpffs() as pins, contextlib.ExitStack() as stack:
        program = load(Path(pins) / "wires", slots=4)
        stack.callback(program.unload)
        tables = Tables(program, ports=PORTS, half_closed_s=60)
        stack.callback(tables.close)
        tables.add_listener(LISTENER)
        rig = Rig(program, tables, 0)
        stack.callback(rig.close)
        wires = [
            stack.enter_context(wire(network, leg, ethernet=ethernet))
            for leg, ethernet in ((MOBILE, mobile), (SERVER, server))
        ]
        hooks = Hooks(program)
        hooks.attach_all()
        stack.callback(hooks.close)
        stack.callback(hooks.detach_all)
        yield Host(rig, network, *wires)


@pytest.fixture(scope="module")
def loaded_host() -> Iterator[Host]:
    with host() as made:
        yield made


def expected(made: Host, leg: int, frame: bytes, gso_size: int = 0) -> Seen:
    arrived = read(frame)
    if made.rig.session.legs[leg].path.ethernet:
        arrived = replace(arrived, destination_mac=OWN[leg])
    seen = Model(made.rig.snapshot(), leg, arrived, gso_size).expect().seen
    assert seen is not None
    out = MOBILE if leg == SERVER else SERVER
    if not made.rig.session.legs[out].path.ethernet:
        seen = replace(seen, destination_mac="00:00:00:00:00:00", source_mac="00:00:00:00:00:00")
    return seen


@pytest.mark.parametrize("server", ["Ethernet", "tunnel"])
@pytest.mark.parametrize("mobile", ["Ethernet", "tunnel"])
def test_between_interfaces_with_and_without_link_layer(mobile: str, server: str):
    with host(mobile=mobile == "Ethernet", server=server == "Ethernet") as made:
        for families in FAMILIES:
            made.splice(*families)
            for leg, into, out in ((MOBILE, made.mobile, made.server), (SERVER, made.server, made.mobile)):
                at, acks = (5000, 8500) if leg == MOBILE else (9000, 4500)
                for options in (b"", timestamps(1, 2), b"\x01" + timestamps(1, 2) + b"\x01" * 3):
                    segment = made.rig.segment(leg, at, acks, ACK | PSH, options=options, payload=b"across")
                    frame = made.rig.frame(leg, segment)
                    meant = expected(made, leg, frame)
                    into.send(frame)
                    assert out.frames(1) == [meant]
        assert made.drops() == {}


def test_a_spliced_packet_passes_where_the_same_of_the_kernels_is_dropped(loaded_host: Host):
    made = loaded_host
    made.splice()
    made.mobile.send(made.rig.frame(MOBILE, made.rig.segment(MOBILE, 5000, 8500)))
    [seen] = made.server.frames(1)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as kernel:
        kernel.bind(("wire0", 0))
        with pytest.raises(OSError, match="No buffer space"):
            kernel.send(made.rig.outgoing(SERVER, seen.segment))
    assert made.server.frames(0) == []
    assert made.drops() == {"kernel_spoke": 1}


@pytest.mark.parametrize("layout", ["plain", "timestamps", "general"])
@pytest.mark.parametrize("families", FAMILIES)
def test_a_train_is_one_packet_for_the_splice_and_many_on_the_wire(
    loaded_host: Host, families: tuple[int, int], layout: str
):
    """Its checksum is to be completed by an interface: here the kernel does it, after the splice."""
    made = loaded_host
    options = {"plain": b"", "timestamps": timestamps(9, 9), "general": b"\x01" * 4 + timestamps(9, 9)}[layout]
    session = made.splice(*families)
    before = made.drops()
    payload = bytes(index % 251 for index in range(10000))
    frame = made.rig.frame(MOBILE, made.rig.segment(MOBILE, 5000, 8500, options=options, payload=payload))
    whole = expected(made, MOBILE, frame, 1200)
    made.mobile.send(frame, gso_size=1200)
    found = made.server.frames(9)
    assert made.drops() == before
    for index, seen in enumerate(found):
        at = index * 1200
        # Each IPv4 packet of a train has an identification of its own.
        assert replace(seen, label=0) == replace(
            whole,
            label=0,
            segment=replace(
                whole.segment,
                sequence=(whole.segment.sequence + at) % WRAP,
                payload=payload[at : at + 1200],
            ),
        )
    assert session.up.sent == 15000


def test_a_train_of_which_the_packets_would_not_fit_does_not_leave(loaded_host: Host):
    made = loaded_host
    made.splice(4, 6)
    before = made.drops().get("too_big", 0)
    # 1460 bytes fit IPv4's 1500, not IPv6's.
    made.mobile.send(made.rig.frame(MOBILE, made.rig.segment(MOBILE, 5000, 8500, payload=bytes(2920))), gso_size=1460)
    assert made.server.frames(0) == []
    assert made.drops()["too_big"] == before + 1


def test_a_train_that_the_other_family_has_no_place_for_does_not_leave(loaded_host: Host):
    made = loaded_host
    made.splice(4, 6)
    before = made.drops()
    for payload, gone in ((65495 - 40, 0), (65496 - 40, 1)):
        segment = made.rig.segment(MOBILE, 5000, 8500, payload=bytes(payload))
        made.mobile.send(made.rig.frame(MOBILE, segment), gso_size=1400)
        made.server.frames(0 if gone else -(-payload // 1400))
        assert made.drops().get("family_change", 0) - before.get("family_change", 0) == gone


@pytest.mark.parametrize("family", [4, 6])
def test_once_a_second_the_kernels_neighbours_are_asked_and_the_answer_is_noted(loaded_host: Host, family: int):
    made = loaded_host
    path = made.splice(4, family).legs[SERVER].path
    (address, _), _ = ENDS[SERVER, family]
    host_prefix = "32" if family == 4 else "128"
    made.network.ip(
        f"route replace {address}/{host_prefix} dev wire0\n"
        f"neighbour replace {address} lladdr {_ROUTER} nud permanent dev wire0"
    )
    path.fresh_until = path.ifindex = 0
    path.ifindex = if_nametoindex("wire0")
    frame = made.rig.frame(MOBILE, made.rig.segment(MOBILE, 5000, 8500))
    meant = expected(made, MOBILE, frame)
    for _ in range(2):
        made.mobile.send(frame)
        assert made.server.frames(1) == [replace(meant, destination_mac=_ROUTER)]
    assert bytes(path.next_hop) == bytes.fromhex(_ROUTER.replace(":", ""))
    assert bytes(path.own) == bytes.fromhex(OWN[SERVER].replace(":", ""))
    assert (path.misses, path.mtu) == (0, 1500)
    assert 0 < path.fresh_until - time.monotonic_ns() < 1_000_000_000


def test_packets_that_take_no_way_are_told(loaded_host: Host):
    """Nothing answers for the next hop: the packets that the kernel is to send stay with it."""
    rig = loaded_host.rig
    path = loaded_host.splice(4, 4).legs[SERVER].path
    told = []
    for miss in range(4):
        path.fresh_until = 0
        result = rig.run(rig.frame(MOBILE, rig.segment(MOBILE, 5000, 8500)))
        assert (result.verdict, path.misses) == (7, miss + 1)
        told += [event.type for event in result.told]
    assert told == [EventType.NO_PATH]  # not again within a tenth of a second
