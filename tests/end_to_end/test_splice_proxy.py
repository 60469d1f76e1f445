"""The proxy is not needed for what is spliced: it may stand still, be killed, be replaced, lose its programs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MSOCKS, Field
from tests.end_to_end.ends import Ends, connect, eventually, join, listen, read, sockets_toward
from tests.end_to_end.splice_fixtures import own_spliced

__all__ = ["own_spliced"]

MB = 1_000_000
RATE = str(3 * MB)


def advance(ends: Ends, count: int = 20) -> None:
    """Round trips of 10 KB, in both directions."""
    for number in range(count):
        block = bytes([number]) * 10_000
        for this, other in ((ends.client, ends.server), (ends.server, ends.client)):
            this.sendall(block)
            assert read(other, len(block)) == block


def of_the_splice(field: Field) -> tuple[list[str], str]:
    """What is on the proxy's host of it: files pinned, and nftables' rules."""
    # The kernel puts two files of its own there, whose names end in .debug.
    pins = field.lab.proxy.run(["find", "/sys/fs/bpf", "-mindepth", "1", "!", "-name", "*.debug"]).stdout.splitlines()
    return pins, field.lab.proxy.run(["nft", "list", "ruleset"]).stdout


def test_a_stopped_proxy_does_not_stop_the_bytes(own_spliced: Field) -> None:
    field = own_spliced
    down = field.transfer("--download", str(18 * MB), "--upload", str(6 * MB), "--rate", RATE)
    down.wait_for(3 * MB)
    with join(field, plain=True) as ends, listen(field) as listener:
        os.kill(field.proxy.pid, signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{field.proxy.pid}/stat").read_text().rsplit(")")[1].split()[0] == "T")
        before = down.received()
        for _ in range(4):
            advance(ends)
            time.sleep(0.5)
        assert down.received() - before > 3 * MB
        os.kill(field.proxy.pid, signal.SIGCONT)
        advance(ends)
        with connect(field, listener.getsockname()[1]):  # and it serves others again
            pass
    assert down.result()["error"] == ""


def test_a_killed_proxy_does_not_end_what_is_spliced(own_spliced: Field, tmp_path: Path) -> None:
    field = own_spliced
    captures = [
        (host, host.capture(tmp_path / f"{host.name}.pcap", "tcp[tcpflags] & tcp-rst != 0"))
        for host in (field.lab.mobile, field.lab.server)
    ]
    with join(field, plain=True) as idle, join(field, plain=True) as ends:
        ends.server.sendall(bytes(100_000))
        field.kill_proxy()
        assert read(ends.client, 100_000) == bytes(100_000)
        advance(ends)
        field.start_proxy("--open")
        advance(ends)
        with join(field, plain=True) as another:
            advance(another)
            assert not sockets_toward(field, ends.port)
        for end, other in ((ends.client, ends.server), (ends.server, ends.client)):
            end.shutdown(1)
            assert read(other, 1) == b""
        advance(idle)
        idle.client.shutdown(1)
        assert read(idle.server, 1) == b""
        idle.server.sendall(b"the end")
        idle.server.shutdown(1)
        assert read(idle.client, 8) == b"the end"
    time.sleep(0.5)
    for host, capture in captures:
        capture.stop()
        ports = f"port {ends.port} or port {idle.port} or host {field.lab.server.ipv4} or port 1080"
        seen = host.run(["tcpdump", "-nr", str(tmp_path / f"{host.name}.pcap"), ports]).stdout
        # The agent's channel to the proxy that was killed ended with it; that is no session.
        sessions = [line for line in seen.splitlines() if host.name == "server"]
        assert not sessions, seen
    pins, rules = of_the_splice(field)
    assert pins
    assert "msocks" in rules
    field.proxy.terminate()
    field.proxy.wait(15)
    assert of_the_splice(field) == ([], "")


def test_a_session_moves_after_its_proxy_was_stopped_for_a_while(own_spliced: Field) -> None:
    field = own_spliced
    with join(field) as ends:
        advance(ends)
        os.kill(field.proxy.pid, signal.SIGSTOP)
        time.sleep(1)
        advance(ends)
        os.kill(field.proxy.pid, signal.SIGCONT)
        assert field.msocks("move", "all", "--to", "lte").returncode == 0
        advance(ends)
        assert {flow["link"] for flow in field.flows()} == {"lte"}
        assert not sockets_toward(field, ends.port)


def test_programs_that_somebody_detaches_come_back(own_spliced: Field) -> None:
    field = own_spliced
    with join(field, plain=True) as ends:
        advance(ends)
        field.lab.proxy.run(["sh", "-c", "rm /sys/fs/bpf/msocks/*/links/*"])
        # Now the packets reach the host's own TCP, which knows none of these connections.
        ends.client.sendall(b"to the server")
        ends.server.sendall(b"to the client")
        time.sleep(0.5)
        for rule in ("msocks-server-legs", "msocks-listeners"):
            assert "counter packets 0 " not in line_of(field, rule)
        assert read(ends.server, 13) == b"to the server"
        assert read(ends.client, 13) == b"to the client"
        eventually(lambda: "programs_attached_again" in field.proxy.output())
        advance(ends)
    with join(field, plain=True) as another:
        advance(another)


def test_a_firewall_table_that_somebody_flushes_comes_back(own_spliced: Field) -> None:
    field = own_spliced
    with join(field, plain=True) as ends:
        for _ in range(3):
            field.lab.proxy.run(["nft", "flush", "ruleset"])
            advance(ends)
            # The kernel tells of the change.
            eventually(lambda: "msocks-server-legs" in of_the_splice(field)[1], timeout=3)
    # It is said when nft has ended, which is after the rules can be seen.
    eventually(lambda: field.proxy.output().count("firewall_installed_again") == 3)


def test_a_proxy_that_root_has_started_keeps_no_privilege_that_it_does_not_need(own_spliced: Field) -> None:
    field = own_spliced
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{field.proxy.pid}/status").read_text().splitlines())
    assert status["Uid"].split() == ["0"] * 4
    net_admin, net_raw, bpf = 12, 13, 39
    kept = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    needed = 1 << net_admin | 1 << net_raw | 1 << bpf
    assert kept == {"CapInh": 0, "CapPrm": needed, "CapEff": needed, "CapBnd": needed, "CapAmb": 0}
    assert status["NoNewPrivs"] == "1"
    # With these it does all that a proxy does: attach to what comes, put back what went, take sessions, and go.
    field.lab.proxy.run(["ip", "link", "add", "late", "type", "veth", "peer", "name", "later"])
    field.lab.proxy.run(["nft", "flush", "ruleset"])
    eventually(lambda: "msocks-server-legs" in of_the_splice(field)[1], timeout=3)
    eventually(lambda: len(of_the_splice(field)[0]) > 0)
    with join(field, plain=True) as ends, join(field) as others:
        advance(ends, 3)
        advance(others, 3)
    index = field.lab.proxy.run(["cat", "/sys/class/net/late/ifindex"]).stdout.strip()
    assert any(f"/{index}-ingress" in pin for pin in of_the_splice(field)[0])


def test_the_operator_is_shown_what_passes_and_what_is_dropped(own_spliced: Field) -> None:
    field = own_spliced

    def shown(*options: str) -> dict[str, Any]:
        argv = [MSOCKS, "sessions", "--json", "--state", str(field.state), *options]
        found: dict[str, Any] = json.loads(field.lab.proxy.run(argv).stdout)
        return found

    with join(field, plain=True) as ends:
        advance(ends, 3)
        (session,) = shown()["sessions"]
        assert session["packets_up"] >= 3
        assert session["packets_down"] >= 3
        assert 0 <= session["idle"] < 5
        before = shown("--troubles")
        assert before["datapath"] == "splice"
        assert before["troubles"]["slots"]["free"] == before["troubles"]["slots"]["all"] - 1
        # A stranger's SYNs from the splice's range.
        field.lab.proxy.run([sys.executable, "-c", STRANGER, field.lab.server.ipv4, str(ends.port)])
        (session,) = shown()["sessions"]
        after = shown("--troubles")["troubles"]
        assert after["firewall"]["msocks-server-legs"] == before["troubles"]["firewall"]["msocks-server-legs"] + 3
        assert after["dropped"] == before["troubles"]["dropped"]
        lines = field.lab.proxy.run([MSOCKS, "sessions", "--troubles", "--state", str(field.state)]).stdout
        assert "firewall  msocks-server-legs" in lines


STRANGER = """
import socket, sys
for port in range(20000, 20003):
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind(("", port))
    try:
        sock.connect((sys.argv[1], int(sys.argv[2])))
    except BlockingIOError:
        pass
"""


def line_of(field: Field, rule: str) -> str:
    """The line of a rule of the splice's table, counters included."""
    (line,) = (line for line in of_the_splice(field)[1].splitlines() if rule in line)
    return line


@pytest.mark.parametrize("orderly", [True, False], ids=["stopped", "killed"])
def test_nothing_is_left_of_a_proxy_that_carried_nothing(own_spliced: Field, orderly: bool) -> None:
    field = own_spliced
    if not orderly:
        field.kill_proxy()
        assert of_the_splice(field)[0]
        field.start_proxy()
    field.proxy.terminate()
    field.proxy.wait(15)
    assert of_the_splice(field) == ([], "")
