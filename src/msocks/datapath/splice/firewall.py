"""The firewall table that keeps the host's own kernel out of spliced connections."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.protocol.leg import DatapathReason

_SERVER_LEGS, _MOBILE_LEGS, _LISTENERS = "msocks-server-legs", "msocks-mobile-legs", "msocks-listeners"
_RULES = {_SERVER_LEGS, _MOBILE_LEGS, _LISTENERS}
_TIMEOUT_S = 10


class Firewall:
    """A table of nftables (``inet NAME``), independent of whatever else filters on this host.

    A packet of a spliced connection that reaches the kernel's TCP all the same (before the maps are filled, or when
    the programs are gone) meets no socket and is answered with an RST: two healthy ends would lose their connection.
    Such an RST belongs to no socket and so carries no mark; the proxy's own sockets, its listeners, what these accept,
    and the packets that it makes itself all carry one. So the table drops, on the way out of this host,

    - whatever TCP comes from a port of the splice's range without the mark: RSTs, and the SYN of a program that binds
      such a port on purpose and would take over a living tuple;
    - RSTs without the mark from a listener's port. Only these: another program may listen on the same port at another
      address of this host,
    - with or without it, RSTs without an ACK from a listener's port: so a listening socket, whose mark they carry,
      answers a segment of a connection that it does not know. Whoever aborts a connection says RST and ACK.

    What stays on this host (lo) is never spliced and not touched. The table outlives the proxy, on purpose.
    """

    def __init__(self, name: str, mark: int) -> None:
        self.name = name
        self._mark = mark

    def install(self, ports: PortRange, listeners: Sequence[int]) -> None:
        """Put the table there, in the network namespace of the calling thread, in place of an earlier one, at once.

        Raises:
            SpliceRefused: nft is missing or refuses.
        """
        _nft(self._rules(ports, listeners))

    def remove(self) -> None:
        """Take the table away; no-op where there is none. Raises SpliceRefused as `install` does."""
        _nft(f"table inet {self.name}\ndelete table inet {self.name}\n")

    def present(self) -> bool:
        """Whether the table stands with all that belongs to it; ``flush ruleset`` takes it away.

        Raises SpliceRefused where nft is missing.
        """
        return self.dropped().keys() >= _RULES

    def dropped(self) -> dict[str, int]:
        """How many packets each rule has dropped, by the rule's comment; empty where the table is missing.

        Raises SpliceRefused where nft is missing.
        """
        listing = _run(["nft", "-j", "list", "table", "inet", self.name], "")
        if listing.returncode != 0:
            return {}
        rules = [item["rule"] for item in json.loads(listing.stdout)["nftables"] if "rule" in item]
        return {
            rule["comment"]: next(part["counter"]["packets"] for part in rule["expr"] if "counter" in part)
            for rule in rules
            if rule.get("comment") in _RULES
        }

    def _rules(self, ports: PortRange, listeners: Sequence[int]) -> str:
        unmarked = f'oifname != "lo" meta mark != {self._mark:#x}'
        listening = ", ".join(map(str, sorted(set(listeners))))
        return f"""
table inet {self.name}
delete table inet {self.name}
table inet {self.name} {{
    set listeners {{
        type inet_service
        {f"elements = {{ {listening} }}" if listening else ""}
    }}
    chain output {{
        type filter hook output priority -300; policy accept;
        tcp sport {ports} {unmarked} counter drop comment "{_SERVER_LEGS}"
        tcp sport @listeners tcp flags & rst == rst {unmarked} counter drop comment "{_MOBILE_LEGS}"
        tcp sport @listeners tcp flags & (rst | ack) == rst oifname != "lo" counter drop comment "{_LISTENERS}"
    }}
}}
"""


def table_name(proxy: str) -> str:
    """The table's name for a proxy whose pins lie in a directory of that name."""
    return f"msocks_{proxy.replace('-', '_')}"


def _nft(commands: str) -> None:
    done = _run(["nft", "-f", "-"], commands)
    if done.returncode != 0:
        # nft repeats the rules behind the first line.
        why = (done.stderr.strip() or "no reason given").splitlines()[0]
        raise SpliceRefused(
            f"nftables refused the table of the splice: {why}",
            remedy="give the proxy CAP_NET_ADMIN (systemd: AmbientCapabilities=) and the kernel nf_tables, "
            "or run it with the relay",
            reason=DatapathReason.NO_PRIVILEGE if "not permitted" in why else DatapathReason.NO_KERNEL_SUPPORT,
        )


def _run(command: list[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise SpliceRefused(
            "the program nft is missing",
            remedy="install nftables (Debian: apt install nftables), or run the proxy with the relay",
            reason=DatapathReason.NO_KERNEL_SUPPORT,
        ) from error
