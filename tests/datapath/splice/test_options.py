from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from tests.datapath.splice.two_hosts import HERE, TwoHosts, set_sysctl

from msocks.datapath.splice.options import ESTABLISHED, LegOptions, is_local, leg_options, reconcile
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.protocol.leg import DatapathReason

LEG = LegOptions(
    state=ESTABLISHED,
    timestamps=True,
    sack=True,
    ecn=False,
    snd_wscale=7,
    rcv_wscale=7,
    snd_mss=1448,
    advmss=1448,
    bytes_acked=0,
    bytes_received=0,
    snd_wnd=65536,
    rcv_wnd=65536,
)
WITHOUT_TIMESTAMPS = replace(LEG, timestamps=False, snd_mss=1460, advmss=1460)


def test_the_kernel_tells_what_was_agreed_on(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    with near, far:
        here, there = leg_options(near), leg_options(far)
    mss = {socket.AF_INET: 1448, socket.AF_INET6: 1428}[family]
    for leg in (here, there):
        assert (leg.state, leg.timestamps, leg.sack, leg.ecn) == (ESTABLISHED, True, True, False)
        assert (leg.snd_mss, leg.advmss) == (mss, mss)
    assert here.snd_wscale == there.rcv_wscale
    assert there.snd_wscale == here.rcv_wscale
    assert here.rcv_wscale > 0
    assert here.snd_wnd == there.rcv_wnd > 1000


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("tcp_timestamps", "0", {"timestamps": False, "snd_mss": 1460, "advmss": 1460}),
        ("tcp_sack", "0", {"sack": False}),
        ("tcp_window_scaling", "0", {"snd_wscale": None, "rcv_wscale": 0}),
    ],
)
def test_what_one_end_has_switched_off_is_not_agreed_on(hosts: TwoHosts, name: str, value: str, expected: dict):
    set_sysctl(f"net.ipv4.{name}", value)
    near, far = hosts.connection(socket.AF_INET)
    with near, far:
        for leg in (leg_options(near), leg_options(far)):
            assert {key: getattr(leg, key) for key in expected} == expected


def test_ecn_is_seen(hosts: TwoHosts):
    set_sysctl("net.ipv4.tcp_ecn", "1")
    near, far = hosts.connection(socket.AF_INET)
    with near, far:
        assert leg_options(near).ecn
        assert reconcile(leg_options(near), LEG) is DatapathReason.UNEQUAL_OPTIONS


def test_bytes_and_windows_are_counted(hosts: TwoHosts, family: socket.AddressFamily):
    near, far = hosts.connection(family)
    with near, far:
        near.sendall(bytes(1000))
        far.sendall(bytes(300))
        assert len(near.recv(300)) == 300
        assert len(far.recv(1000)) == 1000
        here = leg_options(near)
        assert (here.bytes_acked - 1, here.bytes_received) == (1000, 300)  # its SYN counts


def test_an_older_kernel_is_named():
    with pytest.raises(SpliceRefused, match=r"232 bytes.*Linux 6\.2") as caught:
        LegOptions.parse(bytes(232))
    assert caught.value.reason is DatapathReason.NO_KERNEL_SUPPORT


@pytest.mark.parametrize(
    ("mobile", "server", "reason"),
    [
        (LEG, LEG, None),
        (LEG, WITHOUT_TIMESTAMPS, None),
        (WITHOUT_TIMESTAMPS, WITHOUT_TIMESTAMPS, None),
        (WITHOUT_TIMESTAMPS, LEG, DatapathReason.UNEQUAL_OPTIONS),
        (LEG, replace(LEG, sack=False, snd_wscale=None, rcv_wscale=0), None),
        (replace(LEG, sack=False, snd_wscale=None, rcv_wscale=0), LEG, None),
        (replace(LEG, ecn=True), LEG, DatapathReason.UNEQUAL_OPTIONS),
        (LEG, replace(LEG, ecn=True), DatapathReason.UNEQUAL_OPTIONS),
        (LEG, replace(LEG, snd_mss=1447), DatapathReason.PATH_MTU),
        (LEG, replace(LEG, snd_mss=8948, advmss=500), None),
        (LEG, replace(WITHOUT_TIMESTAMPS, snd_mss=1459), DatapathReason.PATH_MTU),
        (replace(LEG, advmss=1428), replace(LEG, snd_mss=1428), None),
        (replace(LEG, state=8), LEG, DatapathReason.UNSPECIFIED),
        (LEG, replace(LEG, state=7), DatapathReason.UNSPECIFIED),
    ],
)
def test_which_legs_can_be_spliced(mobile: LegOptions, server: LegOptions, reason: DatapathReason | None):
    assert reconcile(mobile, server) is reason


def test_a_listener_with_a_small_mss_makes_an_ipv4_mobile_fit_an_ipv6_server(hosts: TwoHosts):
    """The difference of the headers, 20 bytes, has to be announced in the SYN-ACK."""
    server, far = hosts.connection(socket.AF_INET6)
    found = {}
    for mss in (1460, 1440):
        with socket.socket() as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
            listener.bind((HERE[socket.AF_INET], 0))
            listener.listen()
            with hosts.there():
                mobile = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
            with mobile, accepted:
                found[mss] = reconcile(leg_options(accepted), leg_options(server))
    server.close()
    far.close()
    assert found == {1460: DatapathReason.PATH_MTU, 1440: None}


@pytest.mark.parametrize(
    ("own", "peer", "local"),
    [
        (("192.0.2.1", 5), ("192.0.2.1", 80), True),
        (("192.0.2.1", 5), ("192.0.2.11", 80), False),
        (("127.0.0.1", 5), ("127.0.0.2", 80), True),
        (("::ffff:192.0.2.1", 5, 0, 0), ("192.0.2.1", 80), True),
        (("2001:db8::1", 5, 0, 0), ("2001:db8::1", 80, 0, 0), True),
        (("2001:db8::1", 5, 0, 0), ("::1", 80, 0, 0), True),
        (("2001:db8::1", 5, 0, 0), ("2001:db8::2", 80, 0, 0), False),
    ],
)
def test_a_server_on_this_host_is_recognised(own, peer, local: bool):
    assert is_local(own, peer) is local
