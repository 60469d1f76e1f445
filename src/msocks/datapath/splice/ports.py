"""The local ports of server legs: a range of the splice's own, and who of it is in use toward whom."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msocks.datapath.splice.refusal import SpliceRefused
from msocks.errors import ConfigurationError
from msocks.protocol.leg import DatapathReason

_LOWEST = 1024  # below, binding needs a privilege, and services have their ports
_HIGHEST = 65535
_COUNTERS = 4096
# Both sysctls hold for IPv4 and IPv6, and for the network namespace of the thread that opens them.
_AUTOMATIC = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True, slots=True)
class PortRange:
    """The ports from `first` to `last`, both included; 1024 to 65535.

    Raises:
        ConfigurationError: It is empty, or not within the limits.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if not _LOWEST <= self.first <= self.last <= _HIGHEST:
            raise ConfigurationError(
                f"{self} is no port range for server legs", remedy=f"use two ports from {_LOWEST} to {_HIGHEST}"
            )

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last


class PortAllocator:
    """Chooses the local ports of server legs.

    One port serves many destinations at once, the pair of port and destination one connection; whose local address is
    not looked at. Toward a destination ports are taken in turn from a secret beginning (double-hash port selection,
    RFC 6056 section 3.3.4), so that one is used again when all others have been, the range's length of connections
    later, unless one of very many other destinations shares its counter. Nothing is remembered of a destination that
    has no connection.

    A destination with one connection costs about 100 bytes of memory; one with several, 50 to 150 bytes for each.
    """

    def __init__(self, ports: PortRange) -> None:
        self.range = ports
        self._secret = secrets.token_bytes(8)
        self._counters = [0] * _COUNTERS
        # One int object for each port, however often it is in use.
        self._ports = list(range(ports.first, ports.last + 1))
        # By address and port of the destination: its port, or a set where it has several.
        self._in_use: dict[bytes, int | set[int]] = {}
        self._live = 0

    def __len__(self) -> int:
        """How many connections have a port."""
        return self._live

    def take(self, remote: bytes, remote_port: int) -> int:
        """A port for a new connection to `remote` (16 bytes), to be released when its tuple may be used again.

        Raises:
            OSError: EADDRNOTAVAIL where all ports are in use toward this destination.
        """
        key = remote + remote_port.to_bytes(2, "big")
        mixed = hash(self._secret + key)
        counter = mixed % _COUNTERS
        turn = self._counters[counter]
        ports = self._ports
        length = len(ports)
        in_use = self._in_use.get(key)
        offset = mixed // _COUNTERS + turn
        port = ports[offset % length]
        match in_use:
            case None:
                self._in_use[key] = port
            case int():
                if port == in_use:
                    if length == 1:
                        raise _none_left(remote)
                    turn += 1
                    port = ports[(offset + 1) % length]
                self._in_use[key] = {in_use, port}
            case _:
                if len(in_use) == length:
                    raise _none_left(remote)
                while port in in_use:
                    turn += 1
                    offset += 1
                    port = ports[offset % length]
                in_use.add(port)
        self._counters[counter] = turn + 1
        self._live += 1
        return port

    def claim(self, remote: bytes, remote_port: int, port: int) -> None:
        """Note a connection that has its port already (one that an earlier process made).

        A port outside the range, from before it was changed, is nothing that `take` could give: no-op.

        Raises:
            ValueError: It is in use toward this destination.
        """
        if port not in self.range:
            return
        key = remote + remote_port.to_bytes(2, "big")
        in_use = self._in_use.get(key)
        port = self._ports[port - self.range.first]
        match in_use:
            case None:
                self._in_use[key] = port
            case int() if in_use != port:
                self._in_use[key] = {in_use, port}
            case set() if port not in in_use:
                in_use.add(port)
            case _:
                raise ValueError(f"port {port} is in use toward this destination")
        self._live += 1

    def release(self, remote: bytes, remote_port: int, port: int) -> None:
        """The connection is gone, TIME-WAIT included. No-op for a port outside the range.

        Raises:
            KeyError: The port is not in use toward this destination.
        """
        if port not in self.range:
            return
        key = remote + remote_port.to_bytes(2, "big")
        in_use = self._in_use[key]
        if isinstance(in_use, set):
            in_use.remove(port)
            if not in_use:
                del self._in_use[key]
        elif in_use == port:
            del self._in_use[key]
        else:
            raise KeyError(port)
        self._live -= 1


def _none_left(remote: bytes) -> OSError:
    return OSError(errno.EADDRNOTAVAIL, "every port of the splice is in use toward this destination")


def reserve(ports: PortRange) -> None:
    """Keep the kernel from giving these ports to sockets that ask for any (net.ipv4.ip_local_reserved_ports).

    What is reserved already stays so. Nothing is changed where the kernel would give none of them anyway, or where
    all that it would give are reserved. It holds until the next boot.

    Raises:
        SpliceRefused: The setting may not be written.
    """
    lowest, highest = map(int, _AUTOMATIC.read_text().split())
    reserved = list(parse_ranges(_RESERVED.read_text()))
    needed = max(lowest, ports.first), min(highest, ports.last)
    if needed[0] > needed[1] or any(first <= needed[0] and needed[1] <= last for first, last in reserved):
        return
    setting = format_ranges([*reserved, (ports.first, ports.last)])
    try:
        _RESERVED.write_text(setting)
    except OSError as error:
        raise SpliceRefused(
            f"the ports {ports} of the splice overlap those that the kernel gives to anybody ({lowest}-{highest}), and "
            f"cannot be reserved: {os.strerror(error.errno or 0)}",
            remedy=f"run as root: sysctl -w net.ipv4.ip_local_reserved_ports={setting}",
            reason=DatapathReason.NO_PRIVILEGE,
        ) from error


def parse_ranges(setting: str) -> Iterator[tuple[int, int]]:
    """The port ranges of a list as the kernel writes it ("8080,9000-9010"; empty for none). Raises ValueError."""
    for part in setting.split(","):
        if part := part.strip():
            first, _, last = part.partition("-")
            yield int(first), int(last or first)


def format_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """The opposite of `parse_ranges`; ranges that overlap or touch become one."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in merged)


def listeners_within(ports: PortRange) -> list[int]:
    """Ports of the range on which somebody listens (IPv4 or IPv6, any address but loopback ones), ascending.

    The splice's firewall would cut them off.
    """
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/thread-self/net/{table}")
        if not path.exists():
            continue  # no IPv6
        with path.open() as lines:
            next(lines)
            for line in lines:
                _, local, _, state, *_ = line.split()
                address, _, port = local.rpartition(":")
                loopback = address.endswith("7F") if table == "tcp" else address == "0" * 24 + "01000000"
                if state == _LISTENING and not loopback and int(port, 16) in ports:
                    found.add(int(port, 16))
    return sorted(found)
