from __future__ import annotations

import select
import socket
from dataclasses import replace

import pytest
from tests.datapath.splice.two_hosts import HERE, TwoHosts, packed, set_sysctl

from msocks.datapath.splice.options import ESTABLISHED, LegOptions, is_local, read_options, reconcile, stays_near
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.protocol.leg import DatapathReason

LEG = LegOptions(
    state=ESTABLISHED,
    timestamps=True,
    sack=True,
    ecn=False,
    snd_wscale=7,
    rcv_wscale=7,
    largest_segment=1460,
    announced_segment=1460,
    send_window=65536,
    receive_window=65536,
    bytes_received=0,
    bytes_unread=0,
    round_trip_ms=1,
)
WITHOUT_TIMESTAMPS = replace(LEG, timestamps=False)
CLOSE_WAIT = 8


def test_the_kernel_tells_what_was_agreed_on(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    with near, far:
        here, there = read_options(near), read_options(far)
    mss = {socket.AF_INET: 1460, socket.AF_INET6: 1440}[family]
    for leg in (here, there):
        assert (leg.state, leg.timestamps, leg.sack, leg.ecn) == (ESTABLISHED, True, True, False)
        assert (leg.largest_segment, leg.announced_segment) == (mss, mss)
    assert here.snd_wscale == there.rcv_wscale
    assert there.snd_wscale == here.rcv_wscale
    assert here.rcv_wscale > 0
    assert here.send_window == there.receive_window > 1000


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("tcp_timestamps", "0", {"timestamps": False, "largest_segment": 1460, "announced_segment": 1460}),
        ("tcp_sack", "0", {"sack": False}),
        ("tcp_window_scaling", "0", {"snd_wscale": 0, "rcv_wscale": 0}),
    ],
)
def test_what_one_end_has_switched_off_is_not_agreed_on(hosts: TwoHosts, name: str, value: str, expected: dict):
    set_sysctl(f"net.ipv4.{name}", value)
    near, far = hosts.connection(socket.AF_INET)
    with near, far:
        for leg in (read_options(near), read_options(far)):
            assert {key: getattr(leg, key) for key in expected} == expected


def test_ecn_is_seen(hosts: TwoHosts):
    set_sysctl("net.ipv4.tcp_ecn", "1")
    near, far = hosts.connection(socket.AF_INET)
    with near, far:
        assert read_options(near).ecn
        assert reconcile(read_options(near), LEG, tolerant=True) is DatapathReason.UNEQUAL_OPTIONS


def test_what_was_received_and_what_of_it_waits(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    with near, far:
        far.sendall(bytes(300))
        assert near.recv(100, socket.MSG_WAITALL)
        assert near.recv(200, socket.MSG_PEEK | socket.MSG_WAITALL)
        here = read_options(near)
        assert (here.bytes_received, here.bytes_unread) == (300, 200)


@pytest.mark.parametrize("unread", [0, 200])
def test_a_fin_is_neither_received_nor_unread(hosts: TwoHosts, family: socket.AddressFamily, unread: int):
    near, far = hosts.connection(family)
    with near, far:
        far.sendall(bytes(300))
        assert near.recv(300 - unread, socket.MSG_WAITALL)
        far.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(near, select.POLLRDHUP)
        assert poll.poll(2000)
        here = read_options(near)
        assert (here.state, here.bytes_received, here.bytes_unread) == (CLOSE_WAIT, 300, unread)
        assert read_options(near, unread=False).bytes_unread == 0


class OldKernelSocket(socket.socket):
    """TCP_INFO ends earlier."""

    told = 0

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:  # type: ignore[override]
        return super().getsockopt(level, option, min(size, self.told))


def test_a_kernel_that_tells_no_windows_is_refused_and_says_what_to_do(hosts: TwoHosts):
    near, far = hosts.connection(socket.AF_INET)
    with far, OldKernelSocket(socket.AF_INET, socket.SOCK_STREAM, fileno=near.detach()) as old:
        old.told = 228
        with pytest.raises(SpliceRefused, match=r"Linux 5\.4") as refused:
            read_options(old)
        assert refused.value.reason is DatapathReason.NO_KERNEL_SUPPORT
        old.told = 232
        options = read_options(old)
        assert options.receive_window == 65535
        assert options.send_window == read_options(far).receive_window


def test_a_peer_on_another_host_is_not_local(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    with near, far:
        assert not is_local(near)
        assert not is_local(far)


@pytest.mark.parametrize("address", ["127.0.0.5", "::1", "own IPv4", "own IPv6", "IPv4 by an IPv6 socket"])
def test_a_peer_on_this_host_is_local(hosts: TwoHosts, address: str):
    own = {"own IPv4": HERE[socket.AF_INET], "own IPv6": HERE[socket.AF_INET6]}
    address = own.get(address, f"::ffff:{HERE[socket.AF_INET]}" if " " in address else address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        socket.socket(family) as near,
    ):
        near.connect((address, listener.getsockname()[1]))
        far, _ = listener.accept()
        with far:
            assert is_local(near)
            assert is_local(far)


@pytest.mark.parametrize(
    ("local", "remote", "near"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "127.0.0.1", True),
        ("169.254.3.4", "192.0.2.2", True),
        ("192.0.2.1", "169.254.0.1", True),
        ("fe80::1", "fe80::2", True),
        ("2001:db8::1", "febf::2", True),
        ("2001:db8::1", "fec0::2", False),
        ("2001:db8::1", "fd00::2", False),
    ],
)
def test_addresses_of_no_interface_in_particular_stay_near(local: str, remote: str, near: bool):
    assert stays_near(packed(local), packed(remote)) is near


@pytest.mark.parametrize(
    ("mobile", "server", "reason"),
    [
        (LEG, LEG, None),
        (LEG, WITHOUT_TIMESTAMPS, None),
        (WITHOUT_TIMESTAMPS, WITHOUT_TIMESTAMPS, None),
        (WITHOUT_TIMESTAMPS, LEG, DatapathReason.UNEQUAL_OPTIONS),
        (LEG, replace(LEG, sack=False, snd_wscale=0, rcv_wscale=0), None),
        (replace(LEG, sack=False, snd_wscale=0, rcv_wscale=0), LEG, None),
        (replace(LEG, ecn=True), LEG, DatapathReason.UNEQUAL_OPTIONS),
        (LEG, replace(LEG, ecn=True), DatapathReason.UNEQUAL_OPTIONS),
        (LEG, replace(LEG, largest_segment=1459), DatapathReason.PATH_MTU),
        (replace(LEG, announced_segment=1440), replace(LEG, largest_segment=1440), None),
        (replace(LEG, state=CLOSE_WAIT), LEG, DatapathReason.UNSPECIFIED),
        (LEG, replace(LEG, state=CLOSE_WAIT), DatapathReason.UNSPECIFIED),
    ],
)
def test_which_legs_can_be_spliced(mobile: LegOptions, server: LegOptions, reason: DatapathReason | None):
    assert reconcile(mobile, server, tolerant=True) is reason


def test_timestamps_on_the_mobile_leg_alone_need_a_mobile_that_is_known_to_bear_it():
    assert reconcile(LEG, WITHOUT_TIMESTAMPS, tolerant=False) is DatapathReason.UNEQUAL_OPTIONS


@pytest.mark.parametrize(("believed", "reason"), [(1340, None), (1341, DatapathReason.PATH_MTU)])
def test_a_server_that_announces_what_it_was_told_of_the_path_can_take_more(
    believed: int, reason: DatapathReason | None
):
    server = replace(LEG, largest_segment=1340)
    assert reconcile(LEG, server, tolerant=True, believed=believed) is reason
