from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from tests.datapath.splice.two_hosts import TwoHosts, set_sysctl

from msocks.datapath.splice.options import ESTABLISHED, LegOptions, read_options, reconcile
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
