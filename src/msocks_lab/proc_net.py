"""Reading the kernel's tables below /proc/net (proc(5))."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass
from typing import Any

_STATES = {
    "01": "ESTABLISHED", "02": "SYN_SENT", "03": "SYN_RECV", "04": "FIN_WAIT1", "05": "FIN_WAIT2", "06": "TIME_WAIT",
    "07": "CLOSE", "08": "CLOSE_WAIT", "09": "LAST_ACK", "0A": "LISTEN", "0B": "CLOSING", "0C": "NEW_SYN_RECV",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SocketEntry:
    """One line of /proc/net/tcp, tcp6, udp or udp6."""

    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    state: str

    def to_dict(self) -> dict[str, Any]:
        """A form that survives JSON."""
        return asdict(self)


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[start : start + 8])[::-1] for start in range(0, len(address), 8)]
    parsed = ipaddress.ip_address(b"".join(words))
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed), int(port, 16)


def sockets(table: str) -> list[SocketEntry]:
    """The lines of such a table. Addresses are in host byte order per 32-bit word, as little-endian machines print."""
    entries = []
    for line in table.splitlines()[1:]:
        columns = line.split()
        entries.append(SocketEntry(*_endpoint(columns[1]), *_endpoint(columns[2]), _STATES[columns[3]]))
    return entries


def tcp_passive_opens(snmp: str) -> int:
    """How many TCP connections the host has accepted since it exists (RFC 4022, tcpPassiveOpens; IPv4 and IPv6)."""
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("PassiveOpens")])
