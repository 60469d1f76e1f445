"""The table before real kernels: the proxy's host here, a peer beyond a cable, who sees what gets out."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator

import pytest
from tests.datapath.splice.two_hosts import HERE, THERE, TwoHosts, packed, set_sysctl
from tests.datapath.splice.unprivileged import error_of_nobody

from msocks.datapath.splice.firewall import Firewall
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.datapath.splice.segments import ACK, FIN, RST, segment
from msocks.protocol.leg import DatapathReason
from msocks.transport.kernel import reset_on_close

MARK = 0x4D534F43
PORTS = PortRange(16384, 32767)
LISTENER = 1080
WAIT_S = 0.3  # for what must not come


@pytest.fixture
def firewall(hosts: TwoHosts) -> Iterator[Firewall]:
    firewall = Firewall("msocks_test", MARK)
    firewall.install(PORTS, [LISTENER])
    yield firewall
    firewall.remove()


def marked(family: socket.AddressFamily, mark: int = MARK) -> socket.socket:
    sock = socket.socket(family)
    sock.settimeout(5)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def listening(family: socket.AddressFamily, port: int = LISTENER, mark: int = MARK) -> socket.socket:
    sock = marked(family, mark)
    sock.bind((HERE[family], port))
    sock.listen()
    return sock


def dialled(hosts: TwoHosts, family: socket.AddressFamily, port: int = LISTENER, timeout_s: float = 5) -> socket.socket:
    with hosts.there():
        sock = socket.socket(family)
    sock.settimeout(timeout_s)
    sock.connect((HERE[family], port))
    return sock


def stray(hosts: TwoHosts, family: socket.AddressFamily, port: int) -> None:
    """A segment of a connection that this host does not know."""
    with hosts.there():
        output = RawOutput(0)
    packet = segment(
        source=(packed(THERE[family]), 443),
        destination=(packed(HERE[family]), port),
        sequence=1,
        acknowledgment=2,
        flags=ACK,
        window=100,
    )
    assert output.send(packet)
    output.close()


def flags_seen(hosts: TwoHosts, capture, wait_s: float = WAIT_S) -> list[int]:
    return [seen.flags for seen in capture.segments(wait_s)]


@pytest.mark.parametrize("port", [PORTS.first, PORTS.last, LISTENER])
def test_the_kernel_does_not_answer_for_a_tuple_that_it_does_not_know(
    hosts: TwoHosts, firewall: Firewall, family: socket.AddressFamily, port: int
):
    with hosts.capture_there() as capture:
        stray(hosts, family, port)
        assert flags_seen(hosts, capture) == []
    assert asyncio.run(firewall.dropped()) == {
        "msocks-server-legs": int(port != LISTENER),
        "msocks-mobile-legs": int(port == LISTENER),
        "msocks-listeners": 0,
    }


def test_it_answers_as_ever_for_other_ports_and_without_the_table(
    hosts: TwoHosts, firewall: Firewall, family: socket.AddressFamily
):
    with hosts.capture_there() as capture:
        stray(hosts, family, PORTS.first - 1)
        stray(hosts, family, PORTS.last + 1)
        assert [flags & RST for flags in flags_seen(hosts, capture)] == [RST, RST]
        firewall.remove()
        stray(hosts, family, PORTS.first)
        assert [flags & RST for flags in flags_seen(hosts, capture)] == [RST]


@pytest.mark.parametrize("cookies", ["0", "2"], ids=["no cookies", "SYN cookies"])
def test_what_a_marked_listener_accepts_carries_the_mark_from_the_first_packet_to_the_reset(
    hosts: TwoHosts, firewall: Firewall, family: socket.AddressFamily, cookies: str
):
    """Also in the splice's range, whose rule drops everything without the mark."""
    set_sysctl("net.ipv4.tcp_syncookies", cookies)
    with listening(family, 20000) as listener:
        mobile = dialled(hosts, family, 20000)
        accepted, _ = listener.accept()
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == MARK
        accepted.sendall(b"hello")
        assert mobile.recv(5) == b"hello"
        reset_on_close(accepted)
        accepted.close()
        with pytest.raises(ConnectionResetError):
            mobile.recv(1)
        mobile.close()
    assert set(asyncio.run(firewall.dropped()).values()) == {0}


def test_a_marked_leg_toward_a_server_lives_and_ends_in_time_wait(
    hosts: TwoHosts, firewall: Firewall, family: socket.AddressFamily
):
    with hosts.there():
        server = socket.create_server((THERE[family], 0), family=family)
    leg = marked(family)
    leg.bind((HERE[family], 20000))
    leg.connect(server.getsockname())
    far, _ = server.accept()
    far.settimeout(5)
    name = leg.getpeername()
    leg.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.shutdown(socket.SHUT_WR)
    assert leg.recv(1) == b""
    leg.close()
    far.close()
    server.close()
    # The server's last ACK was lost, so to speak: what answers now is the TIME-WAIT, which has the mark.
    with hosts.capture_there() as capture:
        with hosts.there():
            output = RawOutput(0)
        source, destination = (packed(THERE[family]), name[1]), (packed(HERE[family]), 20000)
        assert output.send(
            segment(source=source, destination=destination, sequence=1, acknowledgment=2, flags=FIN | ACK, window=100)
        )
        output.close()
        assert ACK in flags_seen(hosts, capture)
    assert set(asyncio.run(firewall.dropped()).values()) == {0}


def test_a_program_cannot_take_over_a_port_of_the_splice(
    hosts: TwoHosts, firewall: Firewall, family: socket.AddressFamily
):
    with hosts.there():
        server = socket.create_server((THERE[family], 0), family=family)
    with server, marked(family, 0) as foreign, hosts.capture_there() as capture:
        foreign.settimeout(WAIT_S)
        foreign.bind((HERE[family], 20000))
        with pytest.raises(OSError, match=r"timed out|not permitted"):
            foreign.connect(server.getsockname())
        assert flags_seen(hosts, capture) == []


def test_a_listener_does_not_answer_for_a_connection_that_it_does_not_know(
    hosts: TwoHosts, firewall: Firewall, family: socket.AddressFamily
):
    """Its answer carries its mark."""
    with listening(family, mark=MARK), hosts.capture_there() as capture:
        stray(hosts, family, LISTENER)
        assert flags_seen(hosts, capture) == []
    assert asyncio.run(firewall.dropped())["msocks-listeners"] == 1


def test_another_program_on_the_listeners_port_goes_on(
    hosts: TwoHosts, firewall: Firewall, family: socket.AddressFamily
):
    with listening(family, mark=0) as listener:
        mobile = dialled(hosts, family)
        accepted, _ = listener.accept()
        accepted.sendall(b"hello")
        assert mobile.recv(5) == b"hello"
        accepted.close()
        assert mobile.recv(5) == b""
        mobile.close()


def test_what_stays_on_this_host_is_not_touched(firewall: Firewall, family: socket.AddressFamily):
    address = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}[family]
    with socket.create_server((address, 20000), family=family) as listener, socket.socket(family) as near:
        near.settimeout(5)
        near.connect(listener.getsockname())
        listener.accept()[0].close()
    with socket.socket(family) as near, pytest.raises(ConnectionRefusedError):
        near.connect((address, 20000))


def test_a_packet_made_here_goes_out(hosts: TwoHosts, firewall: Firewall, family: socket.AddressFamily):
    output = RawOutput(MARK)
    packet = segment(
        source=(packed(HERE[family]), 20000),
        destination=(packed(THERE[family]), 443),
        sequence=1,
        acknowledgment=2,
        flags=RST,
        window=0,
    )
    with hosts.capture_there() as capture:
        assert output.send(packet)
        assert flags_seen(hosts, capture) == [RST]
    output.close()


def test_installing_again_replaces_the_rules_whole(hosts: TwoHosts, firewall: Firewall):
    stray(hosts, socket.AF_INET, PORTS.first)
    assert asyncio.run(firewall.dropped())["msocks-server-legs"] == 1
    firewall.install(PortRange(40000, 40001), [])
    assert asyncio.run(firewall.present())
    assert set(asyncio.run(firewall.dropped()).values()) == {0}
    with hosts.capture_there() as capture:
        stray(hosts, socket.AF_INET, 40001)
        stray(hosts, socket.AF_INET, LISTENER)
        stray(hosts, socket.AF_INET, PORTS.first)
        seen = [(seen.source_port, seen.flags & RST) for seen in capture.segments(WAIT_S)]
    assert seen == [(LISTENER, RST), (PORTS.first, RST)]


def test_it_notices_that_it_was_taken_away(firewall: Firewall):
    assert asyncio.run(firewall.present())
    assert not asyncio.run(Firewall("msocks_other", MARK).present())
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert not asyncio.run(firewall.present())
    firewall.remove()
    firewall.install(PORTS, [LISTENER])
    assert asyncio.run(firewall.present())
    subprocess.run(["nft", "flush", "chain", "inet", "msocks_test", "output"], check=True)
    assert not asyncio.run(firewall.present())


def test_without_the_privilege_the_error_says_what_to_do(hosts: TwoHosts):
    error = error_of_nobody(lambda: Firewall("msocks_test", MARK).install(PORTS, [LISTENER]))
    assert isinstance(error, SpliceRefused)
    assert error.reason is DatapathReason.NO_PRIVILEGE
    assert "CAP_NET_ADMIN" in str(error)
    assert "\n" not in str(error)


def test_without_nft_the_error_says_what_to_install(hosts: TwoHosts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SpliceRefused, match="install nftables"):
        Firewall("msocks_test", MARK).install(PORTS, [])
