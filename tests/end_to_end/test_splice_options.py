"""What hosts agree on with each other by TCP options, in ways that a splice has to be careful about."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from tests.end_to_end.conftest import Field
from tests.end_to_end.ends import datapath_at_proxy, join
from tests.end_to_end.splice_fixtures import spliced
from tests.end_to_end.test_splice_ends import echo_both_ways, plain_or_agent

__all__ = ["spliced"]

SPLICED = {("splice", "unspecified")}
TIMESTAMPS, SACK, WINDOW_SCALE, ECN = 1, 2, 4, 8  # TCPI_OPT_* of linux/tcp.h


@contextlib.contextmanager
def sysctl(field: Field, name: str, value: int, *hosts: str) -> Iterator[None]:
    """A setting of net.ipv4 of some hosts, meanwhile."""
    before = {host: field.lab.host(host).run(["sysctl", "-n", f"net.ipv4.{name}"]).stdout.strip() for host in hosts}
    try:
        for host in hosts:
            field.lab.host(host).run(["sysctl", "-qw", f"net.ipv4.{name}={value}"])
        yield
    finally:
        for host in hosts:
            field.lab.host(host).run(["sysctl", "-qw", f"net.ipv4.{name}={before[host]}"])


def agreed(sock: socket.socket) -> int:
    """Options of a connection (tcpi_options of struct tcp_info)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]


def test_hosts_that_ask_for_ecn_get_none(spliced: Field) -> None:
    with sysctl(spliced, "tcp_ecn", 1, "mobile", "proxy", "server"), join(spliced, plain=True) as ends:
        assert [agreed(sock) & ECN for sock in (ends.client, ends.server)] == [0, 0]
        echo_both_ways(ends)


@plain_or_agent
@pytest.mark.parametrize("host", ["proxy", "server"])
def test_syn_cookies(spliced: Field, host: str, plain: bool) -> None:
    """The options stand in the timestamp of the SYN-ACK (in its echo, that is), and nowhere else."""
    with sysctl(spliced, "tcp_syncookies", 2, host), join(spliced, plain=plain) as ends:
        assert agreed(ends.server) == TIMESTAMPS | SACK | WINDOW_SCALE
        assert datapath_at_proxy(spliced) == SPLICED
        echo_both_ways(ends)


def test_a_later_leg_that_does_not_fit_is_refused_and_the_session_goes_on(spliced: Field) -> None:
    """The server has timestamps, and nobody could make up what a mobile leg without them does not say."""
    accepted = spliced.lab.server.accepted_connections()
    with join(spliced) as ends:
        echo_both_ways(ends)
        with sysctl(spliced, "tcp_timestamps", 0, "mobile"):
            refused = spliced.msocks("move", "all", "--to", "lte", check=False)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "lte cannot be used: cannot_splice: something on it takes out TCP options" in refused.stderr
            echo_both_ways(ends)
        assert spliced.msocks("move", "all", "--to", "lte").returncode == 0
        echo_both_ways(ends)
        assert datapath_at_proxy(spliced) == SPLICED
        assert spliced.lab.server.accepted_connections() == accepted + 1
