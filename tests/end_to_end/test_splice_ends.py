"""Both ends speak with each other, not with the proxy: windows, resets, half-closes, urgent and tiny segments."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end.conftest import Field
from tests.end_to_end.ends import Ends, datapath_at_proxy, entered, eventually, fill, join, read, read_all
from tests.end_to_end.splice_fixtures import spliced

from msocks_lab import CutMode, Direction, LabProcess

__all__ = ["spliced"]

MB = 1_000_000
SPLICED = {("splice", "unspecified")}
TIMESTAMPS, SACK, WINDOW_SCALE, ECN = 1, 2, 4, 8  # TCPI_OPT_* of linux/tcp.h
plain_or_agent = pytest.mark.parametrize("plain", [True, False], ids=["plain", "agent"])


@contextlib.contextmanager
def captured(field: Field, host: str, path: Path, expression: str) -> Iterator[LabProcess]:
    """What passes a host's interfaces meanwhile."""
    capture = field.lab.host(host).capture(path, expression, snap=128)
    try:
        yield capture
    finally:
        time.sleep(0.1)
        capture.stop()


def lines(field: Field, path: Path, expression: str = "") -> list[str]:
    """The packets of a capture, as tcpdump tells them."""
    done = field.lab.server.run(["tcpdump", "-nttr", str(path), *filter(None, [expression])])
    return done.stdout.splitlines()


def echo_both_ways(ends: Ends, size: int = MB, seed: int = 1) -> None:
    """Different bytes in each direction, at once; compared by SHA-256."""
    blocks = [random.Random(seed + number).randbytes(size) for number in (0, 1)]
    got: dict[int, bytes] = {}
    readers = [
        threading.Thread(target=lambda n=number, s=sock: got.__setitem__(n, read(s, size)))
        for number, sock in enumerate((ends.server, ends.client))
    ]
    writers = [
        threading.Thread(target=sock.sendall, args=(blocks[number],))
        for number, sock in enumerate((ends.client, ends.server))
    ]
    for thread in (*readers, *writers):
        thread.start()
    for thread in (*readers, *writers):
        thread.join(40)
    assert [hashlib.sha256(got[number]).digest() for number in (0, 1)] == [
        hashlib.sha256(block).digest() for block in blocks
    ]


# -- the window is the mobile's ---------------------------------------------------------------------------------------


def test_a_client_that_does_not_read_shuts_the_servers_window(spliced: Field, tmp_path: Path, soak: bool) -> None:
    path = tmp_path / "server.pcap"
    with join(spliced, plain=True, receive_buffer=65536) as ends:
        with captured(spliced, "server", path, f"tcp port {ends.port}"):
            sent = fill(ends.server)
            # What the server's own kernel still holds was not sent.
            unsent = ends.server_unsent()
            assert sent - unsent <= 2 * 65536  # the kernel doubles SO_RCVBUF
            time.sleep(30 if soak else 2)
            assert read(ends.client, 1000) == bytes(1000)
            rest = len(read(ends.client, sent - 1000))
            assert rest == sent - 1000
        windows = lines(spliced, path, f"dst port {ends.port} and tcp[tcpflags] == tcp-ack and tcp[14:2] == 0")
        assert windows, "no ACK ever told the server of a window of 0"
    # The ACKs that the server saw were sent by the mobile: while the client did not read, none moved the window.
    stamps = [float(line.split()[0]) for line in windows]
    assert max(stamps) - min(stamps) > (15 if soak else 1)  # its kernel answered the probes


def test_so_does_a_program_behind_the_agent(spliced: Field, tmp_path: Path) -> None:
    path = tmp_path / "server.pcap"
    with join(spliced, receive_buffer=65536) as ends:
        with captured(spliced, "server", path, f"tcp port {ends.port}"):
            sent = fill(ends.server)
            time.sleep(1)
            assert len(read(ends.client, sent)) == sent
        assert lines(spliced, path, f"dst port {ends.port} and tcp[tcpflags] == tcp-ack and tcp[14:2] == 0")


def test_a_server_that_does_not_read_shuts_the_clients_window(spliced: Field, soak: bool) -> None:
    with join(spliced, plain=True, server_receive_buffer=65536) as ends:
        sent = fill(ends.client)
        time.sleep(30 if soak else 1)
        assert len(read(ends.server, sent)) == sent
        ends.server.sendall(b"done")
        assert read(ends.client, 4) == b"done"


# -- options of TCP ----------------------------------------------------------------------------------------------------


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


@plain_or_agent
@pytest.mark.parametrize("option", ["timestamps", "sack", "window_scaling"])
def test_a_server_without_an_option(spliced: Field, option: str, plain: bool) -> None:
    # A client may drop segments without timestamps on a connection that has them (RFC 7323 section 3.2): a plain one,
    # of which nothing is known, is relayed.
    tolerated = option != "timestamps" or not plain
    with sysctl(spliced, f"tcp_{option}", 0, "server"), join(spliced, plain=plain, is_spliced=tolerated) as ends:
        expected = ("splice", "unspecified") if tolerated else ("relay", "unequal options")
        assert datapath_at_proxy(spliced) == {expected}
        if not plain:
            assert [
                (flow["datapath"], flow["datapath_reason"]) for flow in spliced.flows() if flow["state"] == "live"
            ] == [expected]
        echo_both_ways(ends)


@pytest.mark.parametrize("option", ["timestamps", "sack", "window_scaling"])
def test_a_plain_client_without_an_option(spliced: Field, option: str) -> None:
    with sysctl(spliced, f"tcp_{option}", 0, "mobile"), join(spliced, plain=True) as ends:
        echo_both_ways(ends)


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


def renew_lte(field: Field) -> None:
    """What stands over it, a spare leg above all, is gone; it can be used again when this returns."""
    field.lab.link("lte").cut(CutMode.CARRIER)
    field.wait_until(lambda: '"down"' in field.msocks("links", "--json").stdout.replace(" ", ""))
    field.lab.link("lte").restore()
    field.wait_until(lambda: field.msocks("links", "--json").stdout.replace(" ", "").count('"state":"up"') == 2)


def test_a_later_leg_that_does_not_fit_is_refused_and_the_session_goes_on(spliced: Field) -> None:
    """The server has timestamps, and nobody could make up what a mobile leg without them does not say."""
    accepted = spliced.lab.server.accepted_connections()
    with join(spliced) as ends:
        echo_both_ways(ends)
        with sysctl(spliced, "tcp_timestamps", 0, "mobile"):
            renew_lte(spliced)
            refused = spliced.msocks("move", "all", "--to", "lte", check=False)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "lte cannot be used: cannot_splice: something on it takes out TCP options" in refused.stderr
            echo_both_ways(ends)
        renew_lte(spliced)
        assert spliced.msocks("move", "all", "--to", "lte").returncode == 0
        echo_both_ways(ends)
        assert datapath_at_proxy(spliced) == SPLICED
        assert spliced.lab.server.accepted_connections() == accepted + 1


def quickly(ends: Ends, size: int) -> None:
    """Where a window is shown as shut that is not, its probes alone carry what goes on: one in 200 ms at most."""
    began = time.monotonic()
    echo_both_ways(ends, size)
    assert time.monotonic() - began < 4


def test_a_server_with_a_tiny_window(spliced: Field) -> None:
    # The mobile's TCP has seen the proxy's window, and waits for one that holds more than the server ever offers.
    with join(spliced, server_receive_buffer=2304, is_spliced=False) as ends:
        assert {(flow["datapath"], flow["datapath_reason"]) for flow in spliced.flows() if flow["state"] == "live"} == {
            ("relay", "tiny-window")
        }
        echo_both_ways(ends, 200_000)


@pytest.mark.parametrize("buffer", [2304, 1200])
def test_a_client_with_a_tiny_window(spliced: Field, buffer: int) -> None:
    with join(spliced, plain=True, receive_buffer=buffer) as ends:
        quickly(ends, 50_000)


# -- ends of connections ----------------------------------------------------------------------------------------------


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def error_of(sock: socket.socket) -> int:
    """What reading ends with: an errno, or 0 for an orderly end."""
    try:
        read_all(sock)
    except OSError as error:
        return error.errno or -1
    return 0


@plain_or_agent
@pytest.mark.parametrize("phase", ["fresh", "idle", "busy", "half-closed by itself", "half-closed by the other"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_reaches_the_other_end(spliced: Field, who: str, phase: str, plain: bool) -> None:
    with join(spliced, plain=plain) as ends:
        this, other = (ends.client, ends.server) if who == "client" else (ends.server, ends.client)
        if phase != "fresh":
            ends.client.sendall(b"there")
            assert read(ends.server, 5) == b"there"
            ends.server.sendall(b"and back")
            assert read(ends.client, 8) == b"and back"
        if phase == "busy":
            fill(this, 0.1)
        if phase == "half-closed by itself":
            this.shutdown(socket.SHUT_WR)
            assert read(other, 1) == b""
        if phase == "half-closed by the other":
            other.shutdown(socket.SHUT_WR)
            assert read(this, 1) == b""
        reset(this)
        if phase == "half-closed by itself":
            # The end has been read already; what is written now meets the reset.
            eventually(lambda: wrote_in_vain(other))
        else:
            assert error_of(other) == errno.ECONNRESET


def wrote_in_vain(sock: socket.socket) -> bool:
    try:
        sock.send(b"x")
    except OSError:
        return True
    return False


@plain_or_agent
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_half_closed_connection_goes_on(spliced: Field, who: str, plain: bool) -> None:
    with join(spliced, plain=plain) as ends:
        this, other = (ends.client, ends.server) if who == "client" else (ends.server, ends.client)
        this.sendall(b"all that there is")
        this.shutdown(socket.SHUT_WR)
        assert read_all(other) == b"all that there is"
        for number in range(4):
            other.sendall(bytes([number]) * 50_000)
            assert read(this, 50_000) == bytes([number]) * 50_000
            time.sleep(0.2)
        other.shutdown(socket.SHUT_WR)
        assert read_all(this) == b""


def test_both_ends_close_at_once(spliced: Field) -> None:
    for _ in range(20):
        with join(spliced, plain=True) as ends:
            ends.client.sendall(b"a" * 5000)
            ends.server.sendall(b"b" * 5000)
            ends.client.shutdown(socket.SHUT_WR)
            ends.server.shutdown(socket.SHUT_WR)
            assert (len(read_all(ends.client)), len(read_all(ends.server))) == (5000, 5000)


@pytest.mark.parametrize("who", ["client", "server"])
def test_urgent_data_is_urgent_at_the_other_end(spliced: Field, who: str) -> None:
    with join(spliced, plain=True) as ends:
        this, other = (ends.client, ends.server) if who == "client" else (ends.server, ends.client)
        this.sendall(b"before")
        this.send(b"!", socket.MSG_OOB)
        this.sendall(b"after")
        poller = select.poll()
        poller.register(other, select.POLLPRI)
        assert poller.poll(5000)
        assert other.recv(1, socket.MSG_OOB) == b"!"
        assert read(other, 11) == b"beforeafter"


@plain_or_agent
def test_writes_of_one_byte(spliced: Field, plain: bool) -> None:
    text = os.urandom(3000)
    with join(spliced, plain=plain) as ends:
        for this, other in ((ends.client, ends.server), (ends.server, ends.client)):
            for byte in text:
                this.send(bytes([byte]))
            assert read(other, len(text)) == text


def test_round_trips_of_one_byte(spliced: Field) -> None:
    with join(spliced, plain=True) as ends:
        for number in range(500):
            byte = bytes([number & 0xFF])
            ends.client.send(byte)
            assert read(ends.server, 1) == byte
            ends.server.send(byte)
            assert read(ends.client, 1) == byte


def test_a_server_whose_last_ack_is_lost_with_its_link_is_told_over_another(spliced: Field) -> None:
    """Alone it would say its FIN again for two minutes."""
    wifi = spliced.lab.link("wifi")
    with join(spliced) as ends:
        ends.client.shutdown(socket.SHUT_WR)
        assert read_all(ends.server) == b""
        wifi.cut(CutMode.SILENT, Direction.UP)
        ends.server.close()
        assert read_all(ends.client) == b""
        assert states(spliced, ends.port) == {"LAST_ACK"}
        eventually(lambda: not states(spliced, ends.port))
        wifi.restore()
    eventually(lambda: spliced.msocks("links").stdout.count(" up ") == 2)


def states(field: Field, port: int) -> set[str]:
    """Of the server's connections on a port."""
    return {str(entry["state"]) for entry in field.lab.server.tcp_sockets() if entry["local_port"] == port}


def test_a_mobile_that_vanishes_does_not_hold_the_server_for_ever(spliced: Field) -> None:
    with join(spliced, plain=True) as ends:
        ends.client.sendall(b"x")
        assert read(ends.server, 1) == b"x"
        with entered(spliced.lab, "server"):
            ends.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000)
        vanish(ends.client)
        ends.server.sendall(b"anybody there?")
        # The mobile's kernel knows the connection no more, and says so: the RST goes through to the server.
        assert error_of(ends.server) == errno.ECONNRESET


def vanish(sock: socket.socket) -> None:
    """Gone without a word (TCP_REPAIR)."""
    sock.setsockopt(socket.IPPROTO_TCP, 19, 1)
    sock.close()
