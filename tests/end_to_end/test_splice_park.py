"""The server must not notice an outage: it neither gives up nor waits longer than the outage lasts."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.end_to_end.conftest import LTE, SERVER_PORT, WIFI, Field
from tests.end_to_end.ends import Ends, entered, eventually, join, listen, read
from tests.end_to_end.splice_fixtures import own_spliced, spliced_field

from msocks_lab import ArrivalMeter, CutMode
from msocks_lab.transfer import abort

__all__ = ["own_spliced"]

MB = 1_000_000


def impatient(field: Field, retries: int) -> None:
    """The server's kernel gives a connection up after so many retransmissions."""
    field.lab.server.run(["sysctl", "-qw", f"net.ipv4.tcp_retries2={retries}"])


def patience_s(retries: int) -> float:
    """So long that lasts, in Linux: time-outs of 0.2 s, doubled each time, and the last is waited for."""
    return 0.2 * ((1 << retries + 2) - 1)


def counter(field: Field, name: str) -> int:
    """One of the server's kernel's."""
    lines = field.lab.server.run(["cat", "/proc/net/netstat"]).stdout.splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("TcpExt:"))
    return int(values[names.index(name)])


@contextlib.contextmanager
def direct(field: Field) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The control: a connection from the mobile host to the server that nobody carries."""
    with listen(field) as listener:
        with entered(field.lab, "mobile"):
            client = socket.socket()
        with client:
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                yield client, server


def error_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def keep_alive(server: socket.socket) -> None:
    """The server asks an idle connection every second whether anybody is there, and gives it up after three misses."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
        server.setsockopt(socket.IPPROTO_TCP, option, value)


def died_after_s(field: Field, control: socket.socket, living: tuple[socket.socket, ...], lasts_s: float) -> float:
    """After how long the control died; the others must have lived so long."""
    began, died = time.monotonic(), 0.0
    while time.monotonic() - began < lasts_s:
        if not died and error_of(control):
            died = time.monotonic() - began
        for server in living:
            assert not error_of(server), f"it died after {time.monotonic() - began:.1f} s\n{field.lab.logs('proxy')}"
        time.sleep(0.1)
    assert died, "the control lives"
    return died


def test_a_server_does_not_give_up_in_a_long_outage(own_spliced: Field, soak: bool) -> None:
    """Nobody tells the proxy: all links are gone. One connection has data on the way, the other keep-alives alone."""
    field, retries = own_spliced, 5 if soak else 2
    impatient(field, retries)
    question, answer = bytes(range(256)) * 40, bytes(range(255, -1, -1)) * 4000
    with join(field) as ends, join(field) as idle, direct(field) as (_, control), direct(field) as (_, idle_control):
        for server in (idle.server, idle_control):
            keep_alive(server)
        for each in (ends, idle):
            each.server.sendall(b"before")
            assert read(each.client, 6) == b"before"
        for link in field.lab.links:
            link.cut(CutMode.CARRIER)
        sender = threading.Thread(target=ends.server.sendall, args=(answer,))
        sender.start()
        control.sendall(answer[:1000])
        lasts_s = (10 if soak else 3) * patience_s(retries)
        assert died_after_s(field, control, (ends.server, idle.server), lasts_s) < 2 * patience_s(retries)
        assert error_of(idle_control)
        field.lab.link("lte").restore()
        ends.client.sendall(question)
        assert read(ends.client, len(answer)) == answer
        assert read(ends.server, len(question)) == question
        sender.join()
        for this, other in ((idle.client, idle.server), (idle.server, idle.client)):
            this.sendall(b"still there")
            assert read(other, 11) == b"still there"


def test_a_server_does_not_give_up_although_the_proxy_is_dead(own_spliced: Field) -> None:
    """The kernel's half answers it. The agent is stopped, so that nobody brings another leg."""
    field, retries = own_spliced, 2
    impatient(field, retries)
    with join(field) as ends, join(field) as idle, direct(field) as (_, control):
        for server in (idle.server, control):
            keep_alive(server)
        for each in (ends, idle):
            each.server.sendall(b"before")
            assert read(each.client, 6) == b"before"
        reset_leg(field, ends, asking=1)
        field.proxy.send_signal(signal.SIGKILL)
        field.proxy.wait()
        for link in field.lab.links:
            link.cut(CutMode.CARRIER)
        ends.server.sendall(bytes(10_000))
        assert died_after_s(field, control, (ends.server, idle.server), 2 * patience_s(retries)) < 5
        assert snd_window(field, ends) == 0


def reset_leg(field: Field, *connections: Ends, asking: int = 0) -> None:
    """Something on the mobile's side answers with RST what the servers say, some of which ask by themselves; its agent
    does not get to know.
    """
    assert field.agent is not None
    field.agent.send_signal(signal.SIGSTOP)
    rules = """
table inet rude {
    chain rude {
        type filter hook input priority 0
        tcp sport 1080 tcp flags & (syn | rst) == 0 reject with tcp reset
    }
}
"""
    field.lab.mobile.run(["nft", "-f", "-"], input=rules)
    for ends in connections:
        ends.server.sendall(b"x")
    eventually(lambda: field.lab.logs("proxy").count("session_parked") == len(connections) + asking)


def let_pass(field: Field) -> None:
    """It is gone, and the agent goes on."""
    assert field.agent is not None
    field.lab.mobile.run(["nft", "delete", "table", "inet", "rude"])
    field.agent.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("is_told", [False, pytest.param(True, marks=pytest.mark.long)])
def test_what_ends_while_no_leg_stands_ends_alike_at_the_mobile(own_spliced: Field, is_told: bool) -> None:
    """With all that was sent before, and in its order. Whether the proxy was told, or all links are gone."""
    field = own_spliced
    with join(field) as ended, join(field) as reset, join(field) as said:
        for each in (ended, reset, said):
            each.server.sendall(b"before")
            assert read(each.client, 6) == b"before"
        if is_told:
            reset_leg(field, ended, reset, said)
        else:
            for link in field.lab.links:
                link.cut(CutMode.CARRIER)
            field.wait_until(lambda: {flow["state"] for flow in field.flows()} == {"parked"})
        ended.server.sendall(bytes(range(256)) * 100)
        ended.server.shutdown(socket.SHUT_WR)
        abort(reset.server)
        said.server.sendall(b"not yet ")
        time.sleep(1.3 if is_told else 0.5)
        said.server.sendall(b"over")
        if is_told:
            let_pass(field)
            before = b"x"
        else:
            field.lab.link("lte").restore()
            before = b""
        with pytest.raises(ConnectionResetError):
            read(reset.client, 100)
        assert read(ended.client, 25_700) == before + bytes(range(256)) * 100
        ended.client.sendall(b"and the answer")
        ended.client.shutdown(socket.SHUT_WR)
        assert read(ended.server, 100) == b"and the answer"
        assert read(said.client, 12 + len(before)) == before + b"not yet over"
    errors = {str(flow["destination"]).rpartition(":")[2]: flow["error"] for flow in field.flows()}
    assert errors[str(ended.port)] is None
    assert "reset" in str(errors[str(reset.port)])


def snd_window(field: Field, ends: Ends) -> int:
    """What the server believes that the mobile takes."""
    shown = field.lab.server.run(["ss", "-tinH", "sport", "=", f":{ends.port}"]).stdout
    found = [word for word in shown.split() if word.startswith("snd_wnd:")]
    return int(found[0].partition(":")[2]) if found else 0


def test_a_download_moves_without_a_time_out_of_the_server() -> None:
    """Wi-Fi goes, LTE is there: the server is told at once what is missing, and sends a first flight of it."""
    with spliced_field(WIFI, LTE) as field:
        transfer = field.transfer("--download", str(8 * MB))
        transfer.wait_for(1 * MB)
        before = counter(field, "TCPTimeouts")
        gone = field.lab.link("wifi").cut(CutMode.CARRIER)
        assert transfer.result()["error"] == ""
        meter = ArrivalMeter.load(transfer.record)
        stall_s = meter.longest_gap(since=gone.began, until=gone.began + 0.5).seconds
        assert stall_s < 0.19  # the server's least time-out is 200 ms
        first = meter.longest_gap(since=gone.began, until=gone.began + 0.5).ended
        again = meter.time_of(meter.total_at(first - 0.0005) + 256 * 1024)
        assert again - gone.began < 0.3  # with as little at once as was held, 0.34 to 0.57
        assert counter(field, "TCPTimeouts") == before
        field.carried()


@pytest.mark.long
def test_a_download_goes_on_at_once_although_the_other_link_went_a_moment_later() -> None:
    """The proxy was told that the leg is gone, and the server what it may forget; no other leg came then."""
    with spliced_field(WIFI, LTE) as field:
        transfer = field.transfer("--download", str(12 * MB))
        transfer.wait_for(MB)
        gone = field.lab.link("wifi").cut(CutMode.CARRIER)
        time.sleep(0.05)
        field.lab.link("lte").cut(CutMode.CARRIER)
        time.sleep(3)
        usable = field.lab.link("lte").restore().done
        assert transfer.result()["error"] == ""
        meter = ArrivalMeter.load(transfer.record)
        assert meter.longest_gap(since=gone.began).ended - usable < 0.6
        assert meter.longest_gap(since=meter.first_arrival(usable) + 0.001).seconds < 0.6


def test_after_an_outage_the_round_trip_that_the_server_sees_is_that_of_the_path() -> None:
    with spliced_field(WIFI, LTE) as field:
        field.lab.link("lte").cut(CutMode.CARRIER)
        transfer = field.transfer("--download", str(6 * MB))
        transfer.wait_for(1 * MB)
        field.lab.link("wifi").cut(CutMode.CARRIER)
        time.sleep(2)
        usable = field.lab.link("lte").restore().done
        transfer.wait_for(3 * MB)
        shown = field.lab.server.run(["ss", "-tinH", "sport", "=", f":{SERVER_PORT}"]).stdout
        smoothed_ms = max(float(word[4:].partition("/")[0]) for word in shown.split() if word.startswith("rtt:"))
        assert 40 < smoothed_ms < 50 + 100 + 60  # LTE, its queue, and what a loaded machine adds
        assert transfer.result()["error"] == ""
        meter = ArrivalMeter.load(transfer.record)
        assert meter.first_arrival(usable) - usable < 0.4


@pytest.mark.long
def test_the_same_link_comes_back_and_the_old_leg_speaks_again() -> None:
    """An ACK that has waited for a neighbour's address is heard before the next leg stands; the server answers it."""
    alone = replace(LTE, ipv4=False)
    with spliced_field(alone) as field:
        for outage_s in (1.0, 2.0, 3.0):
            transfer = field.transfer("--download", str(12 * MB))
            transfer.wait_for(2 * MB)
            field.lab.link("lte").cut(CutMode.CARRIER)
            time.sleep(outage_s)
            usable = field.lab.link("lte").restore().done
            assert transfer.result()["error"] == ""
            meter = ArrivalMeter.load(transfer.record)
            assert meter.first_arrival(usable) - usable < 1.3
            assert meter.longest_gap(since=meter.first_arrival(usable) + 0.001).seconds < 0.9
