"""Two legs leave the kernel in one call, seen by their other ends; whether the reply has left, the test says."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator

import pytest
from tests.datapath.splice.two_hosts import TwoHosts

from msocks.datapath.splice.layout import LegState, Session
from msocks.datapath.splice.libbpf import lib
from msocks.datapath.splice.options import ESTABLISHED, read_options

REPLY = b"the reply"
SILENCE_S = 0.3


class Legs:
    """A mobile leg and a server leg at this host, and their other ends."""

    def __init__(self, hosts: TwoHosts, family: socket.AddressFamily) -> None:
        self.mobile, self.client = hosts.connection(family)
        self.server, self.destination = hosts.connection(family)
        for sock in self.all:
            sock.settimeout(5)
        self.entry = Session()

    @property
    def all(self) -> tuple[socket.socket, ...]:
        return self.mobile, self.client, self.server, self.destination

    def join(self, state: LegState, *, both: bool = True) -> int:
        self.entry.legs[1].state = state
        place = ctypes.addressof(self.entry)
        server = self.server.fileno() if both else -1
        return int(lib.msocks_join(self.mobile.fileno(), REPLY, len(REPLY), server, place, 1))

    def gone(self, sock: socket.socket) -> bool:
        """Whether the descriptor is closed; its number may not be closed once more."""
        try:
            read_options(sock)
        except OSError:
            sock.detach()
            return True
        return False


@pytest.fixture
def legs(hosts: TwoHosts, family: socket.AddressFamily) -> Iterator[Legs]:
    made = Legs(hosts, family)
    yield made
    for sock in made.all:
        sock.close()


def test_both_vanish_behind_the_reply_and_nobody_hears_of_it(legs: Legs, hosts: TwoHosts):
    with hosts.capture_there() as capture:
        assert legs.join(LegState.LIVE) == lib.JOIN_GONE
        sent = list(capture.segments(SILENCE_S))
    assert [segment.packet[-len(REPLY) :] for segment in sent] == [REPLY]
    assert legs.client.recv(100) == REPLY
    assert legs.gone(legs.mobile)
    assert legs.gone(legs.server)
    assert read_options(legs.client).state == read_options(legs.destination).state == ESTABLISHED


def test_a_later_leg_has_no_server_socket(legs: Legs):
    assert legs.join(LegState.LIVE, both=False) == lib.JOIN_GONE
    assert legs.gone(legs.mobile)
    assert not legs.gone(legs.server)


def test_sockets_stay_while_the_reply_has_not_left(legs: Legs):
    assert legs.join(LegState.HANDSHAKE) == lib.JOIN_WAITS
    assert not legs.gone(legs.mobile)
    assert not legs.gone(legs.server)


@pytest.mark.parametrize("speaker", ["client", "destination"])
def test_what_lies_in_a_socket_is_for_somebody_to_read(legs: Legs, speaker: str):
    getattr(legs, speaker).sendall(b"early")
    reader = legs.mobile if speaker == "client" else legs.server
    assert reader.recv(5, socket.MSG_PEEK) == b"early"
    assert legs.join(LegState.LIVE) == lib.JOIN_LIVE
    assert reader.recv(5) == b"early"
    assert not legs.gone(legs.mobile)
    assert not legs.gone(legs.server)


def test_a_mobile_leg_that_was_reset_is_lost(legs: Legs):
    legs.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    legs.client.close()
    with pytest.raises(ConnectionResetError):
        legs.mobile.recv(1)
    assert legs.join(LegState.LIVE) == lib.JOIN_LOST
    assert not legs.gone(legs.server)
