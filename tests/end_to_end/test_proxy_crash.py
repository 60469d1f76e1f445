"""`kill -9` of the proxy: spliced sessions go on meanwhile, and the next proxy knows, lists, moves and ends them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.end_to_end.conftest import MSOCKS, PORT, Field, Transfer
from tests.end_to_end.ends import (
    PATIENCE_S,
    Ends,
    connect,
    entered,
    eventually,
    join,
    listen,
    read,
    sockets_toward,
)
from tests.end_to_end.splice_fixtures import spliced

from msocks_lab import CutMode
from msocks_lab.errors import TransferError
from msocks_lab.socks import connect_through

__all__ = ["spliced"]

MB = 1_000_000


def sessions(field: Field) -> list[dict[str, Any]]:
    """What the proxy's operator sees."""
    listed = field.lab.proxy.run([MSOCKS, "sessions", "--json", "--state", str(field.state)]).stdout
    found: list[dict[str, Any]] = json.loads(listed)["sessions"]
    return found


def advance(ends: Ends, count: int = 10) -> None:
    """Round trips of 10 KB, in both directions."""
    for number in range(count):
        block = bytes([number]) * 10_000
        for this, other in ((ends.client, ends.server), (ends.server, ends.client)):
            this.sendall(block)
            assert read(other, len(block)) == block


def agents_connections(field: Field) -> int:
    """A control channel for each link, and a spare leg while there is a session: its own leg is spliced."""
    sockets = field.lab.proxy.tcp_sockets()
    return sum(entry["local_port"] == PORT and entry["state"] == "ESTABLISHED" for entry in sockets)


def all_durable(field: Field) -> bool:
    return all(session["durable"] for session in sessions(field))


def written(field: Field) -> list[tuple[str, int, int]]:
    """The files of the records, and when they were written last."""
    files = (field.state / f"sessions.sqlite{suffix}" for suffix in ("", "-wal"))
    return [(each.name, each.stat().st_mtime_ns, each.stat().st_size) for each in files if each.exists()]


@pytest.mark.timeout(600)
def test_transfers_outlive_their_proxy_and_move_afterwards(spliced: Field, soak: bool) -> None:
    field = spliced
    count = 100 if soak else 10
    rate = 10 * MB // count
    size = str((90 if soak else 8) * rate)  # so many seconds: of which the proxy needs some to start again
    already = field.lab.server.accepted_connections()
    sizes = ("--download", size, "--upload", size, "--rate", str(rate))
    transfers = [field.transfer(*sizes) for _ in range(count)]
    for transfer in transfers:
        transfer.wait_for(rate // 10)
    eventually(lambda: all_durable(field))
    records = written(field)
    for transfer in transfers:
        transfer.wait_for(transfer.received() + rate // 10)
    assert written(field) == records, "something was written for bytes alone"
    field.kill_proxy()
    before = [transfer.received() for transfer in transfers]
    for transfer, had in zip(transfers, before, strict=True):
        transfer.wait_for(had + rate // 3)
    field.start_proxy("--open")
    listed = sessions(field)
    assert len(listed) == count
    assert {(session["user"], session["state"], session["datapath"]) for session in listed} == {
        ("alice", "live", "splice")
    }
    assert min(session["bytes_down"] for session in listed) > rate // 3
    assert {(flow["link"], flow["moves"]) for flow in field.flows()} == {("wifi", 0)}
    records = written(field)
    eventually(lambda: field.msocks("move", "all", "--to", "lte", check=False).returncode == 0)
    assert field.carrying("lte") > MB
    assert written(field) != records
    assert field.carrying("wifi") < 50_000
    for transfer in transfers:
        assert transfer.result(120)["error"] == ""
    assert field.lab.server.accepted_connections() - already == count
    eventually(lambda: not sessions(field))


@contextlib.contextmanager
def dropping(field: Field, host: str, rule: str) -> Iterator[None]:
    """Meanwhile a host drops every packet that comes and matches the rule (of nftables)."""
    table = f"""
table inet crash {{
    chain crash {{
        type filter hook input priority raw; policy accept;
        {rule} drop
    }}
}}
"""
    field.lab.host(host).run(["nft", "-f", "-"], input=table)
    try:
        yield
    finally:
        field.lab.host(host).run(["nft", "delete", "table", "inet", "crash"])


def ask(field: Field, port: int, *, plain: bool = False) -> socket.socket:
    """`connect`, that leaves nothing open where it fails."""
    with entered(field.lab, "mobile"):
        client = socket.socket()
    client.settimeout(20)
    try:
        client.connect((field.lab.proxy.ipv4 if plain else "127.0.0.1", PORT))
        connect_through(client, field.lab.server.ipv4, port)
    except BaseException:
        client.close()
        raise
    return client


def moved(field: Field) -> set[tuple[str, str]]:
    """Link and state of every flow that goes on."""
    return {(flow["link"], flow["state"]) for flow in field.flows() if flow["state"] != "ended"}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_crashes_while_sessions_are_reconnecting(spliced: Field, soak: bool) -> None:
    field = spliced
    crashes, count = (200, 20) if soak else (2, 6)
    rate = 2 * MB // count
    size = str(rate * (20 if soak else 4))
    moments = random.Random(count)

    def begin() -> Transfer:
        return field.transfer("--download", size, "--upload", size, "--rate", str(rate))

    transfers = [begin() for _ in range(count)]
    for transfer in transfers:
        transfer.wait_for(rate // 10)
    stop = threading.Event()

    def move() -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            field.msocks("move", "all", "--to", ("lte", "wifi")[turn % 2], check=False)

    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        try:
            for _ in range(crashes):
                time.sleep(moments.uniform(0, 0.5))
                field.kill_proxy()
                time.sleep(moments.uniform(0, 0.2))
                field.start_proxy("--open")
                eventually(lambda: {state for _, state in moved(field)} <= {"live"}, 40)
                for index, transfer in enumerate(transfers):
                    if soak and transfer.process.poll() is not None:
                        assert transfer.result()["error"] == ""
                        transfers[index] = begin()
        finally:
            stop.set()
        moving.result()
    for transfer in transfers:
        assert transfer.result(120)["error"] == ""


def test_one_whose_leg_died_meanwhile_and_ones_that_are_half_closed(spliced: Field) -> None:
    field = spliced
    with join(field) as ends, join(field) as heard, join(field) as said:
        for each in (ends, heard, said):
            advance(each)
        said.client.shutdown(1)
        assert read(said.server, 1) == b""
        heard.server.shutdown(1)
        assert read(heard.client, 1) == b""
        eventually(lambda: all_durable(field))
        field.kill_proxy()
        heard.client.sendall(bytes(50_000))
        assert read(heard.server, 50_000) == bytes(50_000)
        field.lab.link("wifi").cut(CutMode.CARRIER)
        ends.server.sendall(b"into the void")
        time.sleep(0.3)
        field.start_proxy("--open")
        assert read(ends.client, 13) == b"into the void"
        eventually(lambda: moved(field) == {("lte", "live")})
        advance(ends)
        heard.client.sendall(b"the last")
        heard.client.shutdown(1)
        assert read(heard.server, 9) == b"the last"
        said.server.sendall(b"the last")
        said.server.shutdown(1)
        assert read(said.client, 9) == b"the last"
        for this, other in ((ends.client, ends.server), (ends.server, ends.client)):
            this.shutdown(1)
            assert read(other, 1) == b""
        eventually(lambda: not sessions(field))
    field.lab.link("wifi").restore()


def test_one_that_was_parked(spliced: Field) -> None:
    field = spliced
    with join(field) as ends:
        advance(ends)
        eventually(lambda: all_durable(field))
        for link in ("lte", "wifi"):
            field.lab.link(link).cut(CutMode.CARRIER)
        eventually(lambda: {state for _, state in moved(field)} == {"parked"})
        ends.server.sendall(b"while parked")
        field.kill_proxy()
        time.sleep(0.5)
        field.start_proxy("--open")
        (listed,) = sessions(field)
        assert (listed["user"], listed["durable"], listed["generation"]) == ("alice", True, 1)
        field.lab.link("lte").restore()
        assert read(ends.client, 12) == b"while parked"
        advance(ends)
        (listed,) = sessions(field)
        assert (listed["state"], listed["generation"] > 1) == ("live", True)
        eventually(lambda: all_durable(field))
        field.lab.link("lte").cut(CutMode.CARRIER)
        eventually(lambda: {state for _, state in moved(field)} == {"parked"})
        field.kill_proxy()
        # As where a later leg was accepted, and lost before it carried: nothing but the record knows of it.
        with sqlite3.connect(field.state / "sessions.sqlite") as database:
            database.execute("UPDATE sessions SET generation = generation + 1, up_from = up_from + 7")
        database.close()
        ends.server.sendall(b"again")
        field.start_proxy("--open")
        (listed,) = sessions(field)
        assert (listed["user"], listed["durable"]) == ("alice", True)
        field.lab.link("lte").restore()
        assert read(ends.client, 5) == b"again"
        advance(ends)
    field.lab.link("wifi").restore()


def test_ones_that_ended_meanwhile_leave_nothing(spliced: Field) -> None:
    field = spliced
    with join(field) as ends, join(field, plain=True) as plain:
        for each in (ends, plain):
            advance(each)
        eventually(lambda: any(session["durable"] for session in sessions(field)))
        field.kill_proxy()
        for each in (ends, plain):
            for this, other in ((each.client, each.server), (each.server, each.client)):
                this.shutdown(1)
                assert read(other, 1) == b""
    field.start_proxy("--open")
    assert sessions(field) == []
    field.proxy.terminate()
    field.proxy.wait(15)
    assert field.lab.proxy.run(["find", "/sys/fs/bpf/msocks"], check=False).stdout == ""
    with sqlite3.connect(field.state / "sessions.sqlite") as database:
        assert database.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
    database.close()
    field.start_proxy("--open")


def test_a_plain_clients_session_is_listed_counted_and_ended(spliced: Field) -> None:
    field = spliced
    with join(field, plain=True) as ends, join(field, plain=True) as other:
        advance(ends)
        field.kill_proxy()
        advance(ends)
        field.start_proxy("--open")
        listed = {session["destination"].rpartition(":")[2]: session for session in sessions(field)}
        assert set(listed) == {str(ends.port), str(other.port)}
        mine = listed[str(ends.port)]
        assert (mine["user"], mine["state"], mine["durable"]) == ("", "live", False)
        assert (mine["bytes_up"], mine["bytes_down"]) == (200_000, 200_000)
        advance(ends)
        ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.client.close()
        with pytest.raises(ConnectionResetError):
            read(ends.server, 1)
        eventually(lambda: len(sessions(field)) == 1)


def test_in_the_middle_of_a_handshake(spliced: Field) -> None:
    """The agent asks again, under the same session; a plain client sees the end of its connection."""
    field = spliced
    with listen(field) as listener, ThreadPoolExecutor(2) as pool:
        port = listener.getsockname()[1]
        with dropping(field, "server", f"tcp dport {port}"):
            asks = pool.submit(ask, field, port)
            plain = pool.submit(ask, field, port, plain=True)
            eventually(lambda: sockets_toward(field, port) == 2)
            field.kill_proxy()
            with pytest.raises((ConnectionError, TransferError)):
                plain.result()
        field.start_proxy("--open")
        client = asks.result()
        server, _ = listener.accept()
        with Ends(client, server, port) as ends:
            server.settimeout(20)
            advance(ends)
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_before_the_reply_had_arrived(spliced: Field) -> None:
    """The server is connected, and the client does not know. The agent asks again, and gets what there is."""
    field = spliced
    with listen(field) as listener, ThreadPoolExecutor(2) as pool:
        port = listener.getsockname()[1]
        with dropping(field, "mobile", f"tcp sport {PORT} tcp flags & psh == psh meta length 56-300"):
            plain = pool.submit(ask, field, port, plain=True)
            plain_server, _ = listener.accept()
            asks = pool.submit(ask, field, port)
            server, _ = listener.accept()
            eventually(lambda: len(sessions(field)) == 2 and any(each["durable"] for each in sessions(field)))
            field.kill_proxy()
        field.start_proxy("--open")
        with pytest.raises((ConnectionError, TransferError)):
            plain.result()
        with plain_server, pytest.raises(ConnectionResetError):
            plain_server.recv(1)
        client = asks.result()
        server.settimeout(20)
        with Ends(client, server, port) as ends:
            advance(ends)
        listener.settimeout(0.3)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_before_what_a_plain_client_had_sent_early_had_arrived(spliced: Field) -> None:
    """The proxy's kernel had acknowledged it, so it is lost: both ends get an RST, neither a hole."""
    field = spliced
    with listen(field) as listener:
        port = listener.getsockname()[1]
        with dropping(field, "server", f"tcp dport {port} meta length > 90"):
            with entered(field.lab, "mobile"):
                client = socket.socket()
            client.settimeout(20)
            client.connect((field.lab.proxy.ipv4, PORT))
            address = socket.inet_aton(field.lab.server.ipv4)
            client.sendall(b"\5\1\0" + b"\5\1\0\1" + address + port.to_bytes(2, "big") + b"too early" * 20)
            assert read(client, 12)[:4] == b"\5\0\5\0"
            server, _ = listener.accept()
            server.settimeout(20)
            eventually(lambda: not sockets_toward(field, port))
            field.kill_proxy()
        field.start_proxy("--open")
        client.sendall(b"and more")
        with client, server:
            for end in (client, server):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)


def test_the_moment_after_the_reply(spliced: Field, soak: bool) -> None:
    """What the next proxy has to know of a session is on record before anybody can know that it stands."""
    field = spliced
    for _ in range(20 if soak else 3):
        with listen(field) as listener:
            client = connect(field, listener.getsockname()[1])
            field.kill_proxy()
            server, _ = listener.accept()
        server.settimeout(PATIENCE_S)
        with Ends(client, server, 0) as ends:
            advance(ends)
            field.start_proxy("--open")
            (listed,) = sessions(field)
            assert listed["user"] == "alice"
            advance(ends)
        eventually(lambda: not sessions(field))


@pytest.mark.long
def test_a_proxy_that_is_restarted_for_an_upgrade(spliced: Field) -> None:
    field = spliced
    with join(field) as ends, join(field, plain=True) as plain:
        ends.server.sendall(bytes(100_000))
        os.kill(field.proxy.pid, signal.SIGUSR2)
        assert field.proxy.wait(15) == 0
        assert read(ends.client, 100_000) == bytes(100_000)
        for each in (ends, plain):
            advance(each)
        field.start_proxy("--open")
        assert {session["durable"] for session in sessions(field)} == {True, False}
        eventually(lambda: field.msocks("move", "all", "--to", "lte", check=False).returncode == 0)
        for each in (ends, plain):
            advance(each)


def test_without_a_record_it_goes_on_but_cannot_be_reconnected(spliced: Field) -> None:
    """Nor is it taken off its link, however often the proxy is restarted: nobody could carry it anywhere else."""
    field = spliced
    for _ in range(4):
        field.kill_proxy()
        field.start_proxy("--open", "--store", "memory")
    eventually(lambda: field.msocks("links", check=False).stdout.count(" up ") == 2)
    with join(field) as ends:
        advance(ends)
        field.kill_proxy()
        advance(ends)
        field.start_proxy("--open")
        advance(ends)
        (listed,) = sessions(field)
        assert (listed["user"], listed["durable"], listed["bytes_up"]) == ("", False, 300_000)
        eventually(lambda: agents_connections(field) == 3)
        advance(ends)
        ((link, _),) = moved(field)
        field.lab.link(link).cut(CutMode.CARRIER)
        try:
            with pytest.raises(ConnectionResetError):
                ends.client.recv(1)
        finally:
            field.lab.link(link).restore()
    with join(field) as again:
        advance(again)


@pytest.mark.long
def test_an_update_with_other_tables_relays_and_leaves_the_old_sessions_to_the_old_programs(spliced: Field) -> None:
    field = spliced
    with join(field, plain=True) as old:
        field.kill_proxy()
        maps = field.lab.proxy.run(["sh", "-c", "echo /sys/fs/bpf/msocks/*/layouts"]).stdout.strip()
        known = field.lab.proxy.run(["readlink", f"{maps}/sessions"]).stdout.strip()
        field.lab.proxy.run(["ln", "-sfn", "of-another-version", f"{maps}/sessions"])
        field.datapath = "auto"
        field.start_proxy("--open")
        advance(old)
        eventually(lambda: field.msocks("links", check=False).stdout.count(" up ") == 2)
        with join(field, is_spliced=False) as relayed:
            advance(relayed)
            eventually(lambda: field.msocks("move", "all", "--to", "lte", check=False).returncode == 0)
            relayed.client.sendall(bytes(MB))  # nothing is left that keeps the kernel from acknowledging it
            assert read(relayed.server, MB) == bytes(MB)
            assert {session["datapath_reason"] for session in sessions(field)} == {"no kernel support"}
        with join(field, plain=True, is_spliced=False) as relayed:
            relayed.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            relayed.server.close()
            with pytest.raises(ConnectionResetError):
                relayed.client.recv(1)
        advance(old)
        field.kill_proxy()
        field.lab.proxy.run(["ln", "-sfn", known, f"{maps}/sessions"])
        field.datapath = "splice"
        field.start_proxy("--open")
        advance(old)
        assert [session["datapath"] for session in sessions(field)] == ["splice"]


@pytest.mark.long
def test_one_whose_user_was_removed_meanwhile_ends(spliced: Field) -> None:
    field = spliced
    with join(field) as ends:
        advance(ends)
        eventually(lambda: all_durable(field))
        field.kill_proxy()
        for command in (["remove"], ["add", "--address", "192.0.2.2:1080"]):  # one of the same name is another
            field.lab.proxy.run([MSOCKS, "user", *command, "alice", "--state", str(field.state)])
        advance(ends)
        field.start_proxy("--open")
        with pytest.raises(ConnectionResetError):
            ends.server.recv(1)
    assert sessions(field) == []
