"""Two hosts joined by a cable: the test's thread lives on one, and visits the other."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from tests.own_network import OwnNetwork, own_network

from msocks_lab.namespaces import CLONE_NEWNET, setns, unshare

HERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
THERE = {socket.AF_INET: "192.0.2.2", socket.AF_INET6: "2001:db8::2"}
FAMILIES = (socket.AF_INET, socket.AF_INET6)
IP_MTU = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_PSH = 0x08


def packed(address: str) -> bytes:
    """As the splice writes addresses: 16 bytes."""
    value = ip_address(address)
    return value.packed if value.version == 6 else bytes(10) + b"\xff\xff" + value.packed


@dataclass(frozen=True, slots=True)
class Seen:
    """A TCP packet that arrived."""

    packet: bytes
    source_port: int
    destination_port: int
    sequence: int
    acknowledgment: int
    flags: int


class Capture:
    """All IP packets that arrive at an interface of this host, from now on."""

    def __init__(self, interface: str) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._sock.bind((interface, _ETH_P_ALL))

    def packets(self, wait_s: float) -> Iterator[bytes]:
        """What arrives within that time."""
        end = time.monotonic() + wait_s
        while (left := end - time.monotonic()) > 0 and select.select([self._sock], [], [], left)[0]:
            packet, (_, _, kind, *_) = self._sock.recvfrom(0x10000)
            if kind != _PACKET_OUTGOING:
                yield packet

    def segments(self, wait_s: float) -> Iterator[Seen]:
        """The TCP packets among them."""
        for packet in self.packets(wait_s):
            if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
                header = (packet[0] & 15) * 4
            elif packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_TCP:
                header = 40
            else:
                continue
            source, destination, sequence, acknowledgment, _, flags = struct.unpack_from("!HHIIBB", packet, header)
            yield Seen(packet, source, destination, sequence, acknowledgment, flags)

    def close(self) -> None:
        self._sock.close()


@dataclass(frozen=True, slots=True)
class TwoHosts:
    """Both interfaces are called `cable`; no offload, so that a capture shows what a network would."""

    _network: OwnNetwork
    _here: int
    _there: int

    def ip(self, commands: str) -> None:
        """Run iproute2 on the host where the thread is: several commands, one a line."""
        self._network.ip(commands)

    @contextlib.contextmanager
    def there(self) -> Iterator[None]:
        """Be on the other host."""
        setns(self._there, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(self._here, CLONE_NEWNET)

    @contextlib.contextmanager
    def capture_there(self) -> Iterator[Capture]:
        with self.there():
            capture = Capture("cable")
        try:
            yield capture
        finally:
            capture.close()

    def connection(self, family: socket.AddressFamily, mark: int = 0) -> tuple[socket.socket, socket.socket]:
        """A connection from here to there: this end, that end; both block, for 5 s at most."""
        with self.there():
            listener = socket.create_server((THERE[family], 0), family=family)
        with listener:
            near = socket.socket(family)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            near.settimeout(5)
            near.connect(listener.getsockname())
            far, _ = listener.accept()
            far.settimeout(5)
        return near, far


@contextlib.contextmanager
def in_flight(far: socket.socket) -> Iterator[bytes]:
    """A segment of `far` as it comes in here, and is not ACKed: an error about anything else is ignored."""
    capture = Capture("cable")
    nft("table inet deaf { chain input { type filter hook input priority 0; tcp flags & (psh | ack) != 0 drop; }; }")
    far.sendall(b"x")
    yield next(seen.packet for seen in capture.segments(2) if seen.flags & _PSH)
    capture.close()
    nft("delete table inet deaf")


def nft(commands: str) -> None:
    """Change the packet filter of the host where the thread is."""
    subprocess.run(["nft", "-f", "-"], input=commands, text=True, check=True)


def set_sysctl(name: str, value: str) -> None:
    (Path("/proc/sys") / name.replace(".", "/")).write_text(value)


def sysctl(name: str) -> str:
    return (Path("/proc/sys") / name.replace(".", "/")).read_text().strip()


def _namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    with own_network() as network, contextlib.ExitStack() as descriptors:
        here = _namespace()
        descriptors.callback(os.close, here)
        unshare(CLONE_NEWNET)
        there = _namespace()
        descriptors.callback(os.close, there)
        network.ip(
            "link set lo up\n"
            f"link add cable type veth peer name cable netns {_in_proc(here)}\n"
            "link set cable up\n"
            f"address add {THERE[socket.AF_INET]}/24 dev cable\n"
            f"address add {THERE[socket.AF_INET6]}/64 dev cable nodad"
        )
        setns(here, CLONE_NEWNET)
        network.ip(
            "link set cable up\n"
            f"address add {HERE[socket.AF_INET]}/24 dev cable\n"
            f"address add {HERE[socket.AF_INET6]}/64 dev cable nodad"
        )
        yield TwoHosts(network, here, there)


def _in_proc(descriptor: int) -> str:
    return f"/proc/{os.getpid()}/fd/{descriptor}"
