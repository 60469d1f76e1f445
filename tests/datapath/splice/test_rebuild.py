"""Connections that leave and enter a real kernel without a packet, seen by a peer that must not notice."""

from __future__ import annotations

import random
import socket
import struct
from dataclasses import dataclass
from typing import Any

import pytest
from tests.datapath.splice.two_hosts import HERE, THERE, TwoHosts, packed, set_sysctl
from tests.datapath.splice.unprivileged import error_of_nobody

from msocks.datapath.splice.firewall import Firewall
from msocks.datapath.splice.options import ESTABLISHED, read_options
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.rebuild import rebuild, vanish
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.datapath.splice.segments import ACK, FIN, End

MARK = 0x4D534F43
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_TIMESTAMP = 19, 20, 21, 24
SILENCE_S = 0.4  # longer than a delayed ACK


@dataclass
class Numbers:
    """A connection that has no socket at this end."""

    local: End
    remote: End
    fields: dict[str, Any]

    def rebuilt(self, **changes: Any) -> socket.socket:
        sock = rebuild(self.local, self.remote, **(self.fields | changes))
        assert not sock.getblocking()
        sock.settimeout(5)
        return sock


def taken_apart(sock: socket.socket, family: socket.AddressFamily) -> Numbers:
    """Read everything that `rebuild` wants to know, and let the socket vanish."""
    options = read_options(sock)
    local, remote = sock.getsockname()[1], sock.getpeername()[1]
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    numbers = {}
    for name, queue in (("snd_nxt", 2), ("rcv_nxt", 1)):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        (numbers[name],) = struct.unpack("=I", sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 4))
    (tsval,) = struct.unpack("=I", sock.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP, 4))
    vanish(sock)
    return Numbers(
        (packed(HERE[family]), local),
        (packed(THERE[family]), remote),
        {
            **numbers,
            "snd_wnd": options.send_window,
            "rcv_wnd": options.receive_window,
            "snd_wscale": options.snd_wscale,
            "rcv_wscale": options.rcv_wscale,
            "mss": options.largest_segment,
            "sack": options.sack,
            "tsval": tsval + 1 if options.timestamps else None,
            "mark": MARK,
        },
    )


def receive(sock: socket.socket, size: int) -> bytes:
    """MSG_WAITALL does not wait in a socket that has a time-out."""
    data = bytearray()
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return bytes(data)


def talk(near: socket.socket, far: socket.socket, size: int = 100_000) -> None:
    data = random.randbytes(size)
    for sender, receiver in ((near, far), (far, near)):
        for begin in range(0, size, 20_000):
            part = data[begin : begin + 20_000]
            sender.sendall(part)
            assert receive(receiver, len(part)) == part


@pytest.mark.parametrize("unread", [0, 100], ids=["idle", "with bytes unread and an ACK due"])
def test_a_connection_vanishes_without_a_packet(hosts: TwoHosts, family: socket.AddressFamily, unread: int):
    near, far = hosts.connection(family)
    with far, hosts.capture_there() as capture:
        far.sendall(b"x")
        assert near.recv(1) == b"x"
        far.sendall(bytes(unread))
        list(capture.segments(0.1))
        vanish(near)
        assert near.fileno() == -1
        assert [seen for seen in capture.segments(SILENCE_S) if not (unread and seen.flags == ACK)] == []
        assert read_options(far).state == ESTABLISHED


def test_what_is_lost_already_vanishes_too(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    vanish(near)
    assert near.fileno() == -1
    vanish(near)


@pytest.mark.parametrize(
    "switched_off", [None, "tcp_timestamps", "tcp_sack", "tcp_window_scaling"], ids=lambda name: name or "all options"
)
def test_a_rebuilt_socket_carries_on_to_an_orderly_end(
    hosts: TwoHosts, family: socket.AddressFamily, switched_off: str | None
):
    if switched_off:
        set_sysctl(f"net.ipv4.{switched_off}", "0")
    near, far = hosts.connection(family)
    talk(near, far)
    before = read_options(near)
    numbers = taken_apart(near, family)
    if switched_off:
        set_sysctl(f"net.ipv4.{switched_off}", "1")  # what counts is what was agreed on
    with hosts.capture_there() as capture:
        near = numbers.rebuilt()
        assert list(capture.segments(SILENCE_S)) == []
        after = read_options(near)
        for field in ("state", "timestamps", "sack", "ecn", "rcv_wscale", "send_window", "receive_window"):
            assert getattr(after, field) == getattr(before, field), field
        assert after.snd_wscale == (before.snd_wscale or 0)
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == MARK
        assert (near.getsockname()[1], near.getpeername()[1]) == (numbers.local[1], numbers.remote[1])
        talk(near, far, 1_000_000)
    with far, hosts.capture_there() as capture:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        far.sendall(b"the last")
        assert near.recv(10) == b"the last"
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        assert any(seen.flags & FIN for seen in capture.segments(0.2))
        assert read_options(far).state == 7  # closed: its FIN was ACKed
        near.close()


def test_the_server_may_speak_first_and_in_large(hosts: TwoHosts, family: socket.AddressFamily):
    """All that the offered window takes was on its way while there was no socket: it is sent again."""
    Firewall("msocks_test", MARK).install(PortRange(1024, 65535), [])
    near, far = hosts.connection(family, MARK)
    numbers = taken_apart(near, family)
    data = bytes(range(256)) * 4000
    far.setblocking(False)
    sent = far.send(data)
    with far:
        near = numbers.rebuilt()
        far.settimeout(10)
        assert receive(near, sent) == data[:sent]
        near.close()


def test_the_timestamp_goes_on_from_where_it_was_told(hosts: TwoHosts):
    near, far = hosts.connection(socket.AF_INET)
    numbers = taken_apart(near, socket.AF_INET)
    for told in (0x7FFFFFFF, 0xFFFFFFFE, 5):
        near = numbers.rebuilt(tsval=told)
        (now,) = struct.unpack("=I", near.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP, 4))
        assert 0 <= (now - told) & 0xFFFFFFFF < 1000
        assert now & 1 == 0, "a clock in milliseconds"
        vanish(near)
    far.close()


def test_other_connections_may_have_the_port_before_and_after(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    numbers = taken_apart(near, family)
    port = numbers.local[1]

    def bound() -> socket.socket:
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HERE[family], port))
        return sock

    with far, bound(), numbers.rebuilt() as near, bound():
        talk(near, far)


def test_a_connection_that_exists_is_not_made_a_second_time(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    numbers = taken_apart(near, family)
    with far, numbers.rebuilt() as near, hosts.capture_there() as capture:
        with pytest.raises(OSError, match="Cannot assign requested address"):
            numbers.rebuilt()
        assert list(capture.segments(SILENCE_S)) == []
        talk(near, far)


def test_an_address_that_is_gone_is_refused(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    numbers = taken_apart(near, family)
    numbers.local = (packed({socket.AF_INET: "192.0.2.77", socket.AF_INET6: "2001:db8::77"}[family]), 20000)
    with far, pytest.raises(OSError, match="Cannot assign requested address"):
        numbers.rebuilt()


def test_without_the_privilege_the_error_says_what_to_do(hosts: TwoHosts):
    near, far = hosts.connection(socket.AF_INET)
    with near, far:
        error = error_of_nobody(lambda: vanish(near))
        assert isinstance(error, SpliceRefused)
        assert "CAP_NET_ADMIN" in str(error)
        talk(near, far)
