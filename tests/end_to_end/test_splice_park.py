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


def test_a_server_does_not_give_up_in_a_long_outage(own_spliced: Field, soak: bool) -> None:
    """Nobody tells the proxy: all links are gone."""
    field, retries = own_spliced, 5 if soak else 2
    impatient(field, retries)
    question, answer = bytes(range(256)) * 40, bytes(range(255, -1, -1)) * 4000
    with join(field) as ends, direct(field) as (_, control):
        ends.server.sendall(b"before")
        assert read(ends.client, 6) == b"before"
        for link in field.lab.links:
            link.cut(CutMode.CARRIER)
        began = time.monotonic()
        sender = threading.Thread(target=ends.server.sendall, args=(answer,))
        sender.start()
        control.sendall(answer[:1000])
        died_after = None
        while time.monotonic() - began < (10 if soak else 3) * patience_s(retries):
            if died_after is None and error_of(control):
                died_after = time.monotonic() - began
            assert not error_of(ends.server)
            time.sleep(0.1)
        assert died_after is not None
        assert died_after < 2 * patience_s(retries)
        field.lab.link("lte").restore()
        ends.client.sendall(question)
        assert read(ends.client, len(answer)) == answer
        assert read(ends.server, len(question)) == question
        sender.join()


def test_a_server_does_not_give_up_although_the_proxy_is_dead(own_spliced: Field) -> None:
    """The kernel's half answers it. The agent is stopped, so that nobody brings another leg."""
    field, retries = own_spliced, 2
    impatient(field, retries)
    with join(field) as ends:
        ends.server.sendall(b"before")
        assert read(ends.client, 6) == b"before"
        reset_leg(field, ends)
        field.proxy.send_signal(signal.SIGKILL)
        field.proxy.wait()
        ends.server.sendall(bytes(10_000))
        end = time.monotonic() + 2 * patience_s(retries)
        while time.monotonic() < end:
            assert not error_of(ends.server)
            time.sleep(0.1)
        assert snd_window(field, ends) == 0


def reset_leg(field: Field, ends: Ends) -> None:
    """Something on the mobile's side answers with RST; its agent does not get to know."""
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
    ends.server.sendall(b"x")
    eventually(lambda: "parked" in field.lab.logs("proxy"))


def snd_window(field: Field, ends: Ends) -> int:
    """What the server believes that the mobile takes."""
    shown = field.lab.server.run(["ss", "-tinH", "sport", "=", f":{ends.port}"]).stdout
    found = [word for word in shown.split() if word.startswith("snd_wnd:")]
    return int(found[0].partition(":")[2]) if found else 0


def test_a_download_moves_without_a_time_out_of_the_server() -> None:
    """Wi-Fi goes, LTE is there: the server is told at once what is missing."""
    with spliced_field(WIFI, LTE) as field:
        transfer = field.transfer("--download", str(8 * MB))
        transfer.wait_for(1 * MB)
        before = counter(field, "TCPTimeouts")
        gone = field.lab.link("wifi").cut(CutMode.CARRIER)
        assert transfer.result()["error"] == ""
        meter = ArrivalMeter.load(transfer.record)
        stall_s = meter.longest_gap(since=gone.began, until=gone.began + 0.5).seconds
        assert stall_s < 0.19  # the server's least time-out is 200 ms
        assert counter(field, "TCPTimeouts") == before
        field.carried()


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
