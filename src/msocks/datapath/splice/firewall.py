"""The firewall table that keeps the host's own kernel out of spliced connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import subprocess
from collections.abc import Sequence

from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.protocol.leg import DatapathReason

_SERVER_LEGS, _MOBILE_LEGS, _LISTENERS = "msocks-server-legs", "msocks-mobile-legs", "msocks-listeners"
_RULES = {_SERVER_LEGS, _MOBILE_LEGS, _LISTENERS}
_TIMEOUT_S = 10
# linux/netlink.h and linux/netfilter/nfnetlink.h.
_NETLINK_NETFILTER, _SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES = 12, 270, 1, 7
_NOTICE_BYTES = 1 << 16


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

    async def install_again(self, ports: PortRange, listeners: Sequence[int]) -> None:
        """As `install`, while the event loop goes on."""
        _judge(await _run_beside(["nft", "-f", "-"], self._rules(ports, listeners)))

    async def present(self) -> bool:
        """Whether the table stands with all that belongs to it; ``flush ruleset`` takes it away.

        Raises SpliceRefused where nft is missing.
        """
        return (await self.dropped()).keys() >= _RULES

    async def dropped(self) -> dict[str, int]:
        """How many packets each rule has dropped, by the rule's comment; empty where the table is missing.

        Raises SpliceRefused where nft is missing.
        """
        listing = await _run_beside(["nft", "-j", "list", "table", "inet", self.name], "")
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


class RulesetWatch:
    """Tells that somebody has changed nftables' rules in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        """Raises OSError where the kernel has no nf_tables, or CAP_NET_ADMIN is missing."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        try:
            self._sock.bind((0, 0))  # a socket without a number is taken for the sender, and not told
            self._sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """Readable when there was a change."""
        return self._sock.fileno()

    def drain(self) -> None:
        """What it was is not looked at: the table is, after that."""
        while True:
            try:
                self._sock.recv(_NOTICE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more than fits: a change all the same
                    raise

    def close(self) -> None:
        self._sock.close()


def _nft(commands: str) -> None:
    _judge(_run(["nft", "-f", "-"], commands))


def _judge(done: subprocess.CompletedProcess[str]) -> None:
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
        raise _no_nft() from error


async def _run_beside(command: list[str], text: str) -> subprocess.CompletedProcess[str]:
    """The same, while the event loop goes on."""
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe if text else nothing, stdout=pipe, stderr=pipe
        )
    except FileNotFoundError as error:
        raise _no_nft() from error
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, complaint = await process.communicate(text.encode() if text else None)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return subprocess.CompletedProcess(command, process.returncode or 0, output.decode(), complaint.decode())


def _no_nft() -> SpliceRefused:
    return SpliceRefused(
        "the program nft is missing",
        remedy="install nftables (Debian: apt install nftables), or run the proxy with the relay",
        reason=DatapathReason.NO_KERNEL_SUPPORT,
    )
