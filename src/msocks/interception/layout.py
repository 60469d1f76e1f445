"""The structures that the eBPF programs share with Python: `bpf/layout.h`, read and written."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from msocks.values.endpoint import Address, Endpoint

ATTEMPT = struct.Struct("=Q16s16s2s2s4sIIB7x16s")
SETTINGS = struct.Struct("=Q2s2s2s2sBB6x")
EXCLUDED = struct.Struct("=I16s")

_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_BITS = 96


@dataclass(frozen=True, slots=True)
class Attempt:
    """A program is in connect(); its SYN was held back.

    Attributes:
        cookie: Names the socket, on this host, until it boots anew.
        local: The program's end, where it waits.
        destination: Where it wanted to go.
        sequence: Of the SYN, 32 bits.
        pid, uid, process: Who called connect(); `process` is the kernel's name of it, of at most 15 bytes.
    """

    cookie: int
    local: Endpoint
    destination: Endpoint
    sequence: int
    pid: int
    uid: int
    process: str


def read_attempt(record: bytes) -> Attempt:
    """One record of the ring buffer. Raises struct.error where it is of another size."""
    cookie, local, destination, local_port, port, sequence, pid, uid, is_ipv6, comm = ATTEMPT.unpack(record)
    del is_ipv6  # the local address says it as well
    return Attempt(
        cookie,
        Endpoint(_address(local), int.from_bytes(local_port, "big")),
        Endpoint(_address(destination), int.from_bytes(port, "big")),
        int.from_bytes(sequence, "big"),
        pid,
        uid,
        comm.partition(b"\0")[0].decode(errors="replace"),
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """What the programs are told.

    Attributes:
        agent: The agent's ports on 127.0.0.1 and ::1; 0 leaves that family alone.
        resolver: The keeper's ports for questions to name servers, likewise; (0, 0) leaves resolution alone.
        no_udp: Refuse UDP but over loopback.
        enabled: Where it is false everything is left alone.
    """

    agent: tuple[int, int]
    resolver: tuple[int, int] = (0, 0)
    no_udp: bool = False
    enabled: bool = True

    def pack(self, netns_cookie: int) -> bytes:
        """The structure, for runs in the network namespace of that cookie."""
        ports = (port.to_bytes(2, "big") for port in (*self.agent, *self.resolver))
        return SETTINGS.pack(netns_cookie, *ports, self.enabled, self.no_udp)


def excluded(network: IPv4Network | IPv6Network) -> bytes:
    """The key of a destination that is left alone."""
    bits = network.prefixlen + (_MAPPED_BITS if network.version == 4 else 0)
    return EXCLUDED.pack(bits, _words(network.network_address))


def _words(address: Address) -> bytes:
    return _MAPPED + address.packed if isinstance(address, IPv4Address) else address.packed


def _address(words: bytes) -> Address:
    return IPv4Address(words[12:]) if words.startswith(_MAPPED) else IPv6Address(words)
