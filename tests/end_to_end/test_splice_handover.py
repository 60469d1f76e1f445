"""A session moves while both links live: the old leg brings what went over it, and the server notices nothing."""

from __future__ import annotations

import random
import time
from dataclasses import replace

from tests.end_to_end.conftest import LTE, WIFI
from tests.end_to_end.splice_fixtures import spliced_field

from msocks_lab import CutMode, LinkConfig
from msocks_lab.host import Host

MB = 1_000_000
A_WINDOW = 65536 // 1400


def counted(host: Host) -> dict[str, int]:
    """What a host's TCP has counted (RFC 4022, and TcpExt of Linux)."""
    found: dict[str, int] = {}
    for name in ("netstat", "snmp"):
        lines = [line.split() for line in host.run(["cat", f"/proc/net/{name}"]).stdout.splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            found.update(zip(names[1:], map(int, values[1:]), strict=True))
    return found


def test_an_explicit_move_costs_no_time_out_and_repeats_less_than_a_window() -> None:
    """The rate leaves the queues empty: what is sent again is sent again because of the move. Over IPv4 and IPv6."""
    with spliced_field(replace(WIFI, ipv6=False), replace(LTE, ipv4=False)) as field:
        server, rate = field.lab.server, ("--rate", "1000000")
        transfers = [
            field.transfer(f"--{direction}", str(3 * MB), *rate, host=address)
            for direction, address in (("download", server.ipv4), ("upload", server.ipv6))
        ]
        senders = field.lab.server, field.lab.mobile
        time.sleep(0.8)
        before = [counted(sender) for sender in senders]
        for link in ("lte", "wifi"):
            field.msocks("move", "all", "--to", link)
            time.sleep(0.5)
        after = [counted(sender) for sender in senders]
        for transfer in transfers:
            assert transfer.result()["error"] == ""
        field.carried()
        for early, late in zip(before, after, strict=True):
            assert late["TCPTimeouts"] == early["TCPTimeouts"]
            assert late["RetransSegs"] - early["RetransSegs"] < A_WINDOW
        assert field.lab.server.accepted_connections() == 2


def test_every_byte_is_right_over_many_quick_moves(soak: bool) -> None:
    """Some come before the one before has ended, some while bytes are lost; after some the old link falls silent."""
    size = 35 * MB if soak else 4 * MB
    rate = ("--rate", "700000")
    chance = random.Random(11)
    lossy = (replace(WIFI, loss_percent=0.2, jitter_ms=1), LinkConfig("lte", rtt_ms=30, rate_mbit=20, loss_percent=0.2))
    with spliced_field(*lossy) as field:
        transfers = [
            field.transfer("--download", str(size), "--upload", str(size), *rate),
            field.transfer("--download", str(3 * size)),
            field.transfer("--upload", str(size), *rate),
        ]
        links, moves = ("lte", "wifi"), 0
        while any(transfer.process.poll() is None for transfer in transfers):
            here, there = links[1 - moves % 2], links[moves % 2]
            # A move fails where the session has ended meanwhile, or another one has overtaken it.
            moves += field.msocks("move", "all", "--to", there, check=False).returncode in (0, 1)
            if chance.random() < 0.3:
                field.lab.link(here).cut(CutMode.SILENT)
                time.sleep(0.3)
                field.lab.link(here).restore()
            time.sleep(chance.choice((0.01, 0.05, 0.2, 0.5)))
        for transfer in transfers:
            assert transfer.result()["error"] == ""
        assert moves > 3
        field.carried()


def test_an_upload_that_loses_its_link_repeats_next_to_nothing_that_the_server_has() -> None:
    """Half a megabyte is on its way as Wi-Fi goes; of what arrives no ACK can tell. The server counts repeats."""
    with spliced_field(WIFI, LTE) as field:
        transfer = field.transfer("--upload", str(6 * MB))
        time.sleep(0.7)
        before = counted(field.lab.server)
        field.lab.link("wifi").cut(CutMode.CARRIER)
        assert transfer.process.poll() is None
        assert transfer.result()["error"] == ""
        repeated = counted(field.lab.server)["TCPDSACKOldSent"] - before["TCPDSACKOldSent"]
        assert repeated < 20
        field.carried()
