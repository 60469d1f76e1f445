"""What one call finds and enters of a server leg and the first mobile leg, beside what Python makes of the same two.

The pairs are real connections between two hosts; this end of them is the proxy's.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from tests.datapath.splice.loading import loaded
from tests.datapath.splice.two_hosts import THERE, TwoHosts, nft, set_sysctl
from tests.own_network import own_bpffs

from msocks.datapath.interface import Attachment
from msocks.datapath.splice.entries import Side, fill_leg, fill_mobile_leg, fill_session, key_of
from msocks.datapath.splice.fitting import why_not
from msocks.datapath.splice.layout import SERVER, LegFlag, LegState, Session, SessionFlag
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.tables import Tables

FIRST = 1
REQUEST = b"a request"


@pytest.fixture
def tables(hosts: TwoHosts) -> Iterator[Tables]:
    with own_bpffs() as pins, loaded(pins / "msocks" / "proxy") as program:
        made = Tables(program, ports=PortRange(20000, 20100), half_closed_s=60)
        yield made
        made.close()


@dataclass
class Pair:
    """A mobile leg whose request was read, and a server leg, with an entry of their own."""

    tables: Tables
    slot: int
    mobile: socket.socket
    client: socket.socket
    server: socket.socket
    destination: socket.socket

    @property
    def session(self) -> Session:
        return self.tables.session(self.slot)

    def replace_server(self, server: socket.socket, destination: socket.socket) -> None:
        self.server.close()
        self.destination.close()
        self.server, self.destination = server, destination

    def enter(self, *, resumable: bool = False) -> bool:
        return self.tables.pair(self.slot, self.mobile.fileno(), self.server.fileno(), resumable=resumable)

    def python_accepts(self) -> bool:
        mobile, server = Side.of(self.mobile), Side.of(self.server, unread=False)
        return why_not(self.session, mobile, server, resumable=False, told=self.tables.told_mtus) is None


@contextmanager
def pair_of(
    hosts: TwoHosts, tables: Tables, mobile: socket.AddressFamily, server: socket.AddressFamily, noted: bool = True
) -> Iterator[Pair]:
    slot = tables.take_slot()
    assert slot is not None
    near, client = hosts.connection(mobile)
    far, destination = hosts.connection(server)
    client.sendall(REQUEST)
    assert near.recv(len(REQUEST), socket.MSG_WAITALL) == REQUEST
    if noted:  # which the egress hook does
        tables.session(slot).legs[SERVER].flags = LegFlag.NOTED
    pair = Pair(tables, slot, near, client, far, destination)
    try:
        yield pair
    finally:
        for sock in (near, client, pair.server, pair.destination):
            sock.close()


# From IPv4 to IPv6 segments get smaller, which the proxy's listener sees to.
FAMILIES = [
    (socket.AF_INET, socket.AF_INET),
    (socket.AF_INET6, socket.AF_INET6),
    (socket.AF_INET6, socket.AF_INET),
]


@pytest.mark.parametrize(("mobile", "server"), FAMILIES)
@pytest.mark.parametrize("resumable", [False, True])
def test_an_entry_is_what_python_would_have_made_of_it(
    hosts: TwoHosts, tables: Tables, mobile: socket.AddressFamily, server: socket.AddressFamily, resumable: bool
):
    with pair_of(hosts, tables, mobile, server) as pair:
        assert pair.enter(resumable=resumable)
        near, far = Side.of(pair.mobile), Side.of(pair.server, unread=False)
        made, by_python = pair.session, Session()
        fill_leg(by_python.legs[SERVER], far)
        by_python.legs[SERVER].state, by_python.legs[SERVER].flags = (
            LegState.HANDSHAKE,
            by_python.legs[SERVER].flags | LegFlag.NOTED,
        )
        # Generation and reply are filled in when the reply is written.
        fill_mobile_leg(by_python.legs[FIRST], near, Attachment(pair.mobile, 0, b"", 0, 0))
        fill_session(by_python, far, offered=near.options.send_window, resumable=resumable)
        for number in (SERVER, FIRST):
            assert bytes(made.legs[number]) == bytes(by_python.legs[number])
        for name in ("up", "down"):
            assert bytes(getattr(made, name)) == bytes(getattr(by_python, name))
        assert made.flags == (SessionFlag.RESUMABLE if resumable else 0)
        assert tables.flow_count() == 2
        assert {key_of(made.legs[number]) for number in (SERVER, FIRST)} == {near.key, far.key}


def test_a_pair_is_entered_once(hosts: TwoHosts, tables: Tables):
    with pair_of(hosts, tables, socket.AF_INET, socket.AF_INET) as pair:
        assert pair.enter()
        assert not pair.enter()


def of_small_segments(hosts: TwoHosts) -> tuple[socket.socket, socket.socket]:
    """A connection to a host that takes segments of 1000 bytes."""
    with hosts.there():
        listener = socket.create_server((THERE[socket.AF_INET], 0))
    with listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
        near = socket.create_connection(listener.getsockname(), timeout=5)
        return near, listener.accept()[0]


@pytest.mark.parametrize("unusual", ["not noted", "ECN", "half-closed", "unheard", "timestamps", "smaller segments"])
def test_what_is_unusual_is_left_for_a_closer_look(hosts: TwoHosts, tables: Tables, unusual: str):
    if unusual == "ECN":
        set_sysctl("net.ipv4.tcp_ecn", "1")
    with pair_of(hosts, tables, socket.AF_INET, socket.AF_INET, noted=unusual != "not noted") as pair:
        match unusual:
            case "half-closed":
                pair.client.shutdown(socket.SHUT_WR)
                assert pair.mobile.recv(1, socket.MSG_PEEK) == b""
            case "unheard":
                nft("table inet deaf { chain input { type filter hook input priority 0; drop; }; }")
                pair.mobile.sendall(b"a method")
            case "timestamps":
                set_sysctl("net.ipv4.tcp_timestamps", "0")
                pair.replace_server(*hosts.connection(socket.AF_INET))
            case "smaller segments":
                pair.replace_server(*of_small_segments(hosts))
        before = bytes(pair.session)
        assert not pair.enter()
        assert bytes(pair.session) == before
        assert tables.flow_count() == 0
        assert pair.python_accepts() is (unusual == "unheard")
