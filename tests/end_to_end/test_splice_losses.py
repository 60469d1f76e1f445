"""Single packets are lost at the moments that matter to the splice, or a client resets; then paths that lose many."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time
from collections.abc import Iterator

import pytest
from tests.end_to_end.conftest import MSOCKS, PORT, Field
from tests.end_to_end.ends import (
    Ends,
    dropped,
    entered,
    eventually,
    join,
    let_drop,
    listen,
    read,
    read_all,
    sockets_toward,
    stop_dropping,
)
from tests.end_to_end.splice_fixtures import spliced, spliced_field
from tests.end_to_end.test_splice_ends import echo_both_ways, error_of, reset, states

from msocks_lab import LinkConfig

__all__ = ["spliced"]

MB = 1_000_000
FLAGS = "tcp flags & (syn | ack | psh | fin | rst) =="


@contextlib.contextmanager
def losing(field: Field, host: str, rule: str, hook: str = "input") -> Iterator[None]:
    """The first packet of that kind is lost in this block; there has to be one."""
    let_drop(field, host, rule, hook)
    try:
        yield
        eventually(lambda: dropped(field, host) == 1)
    finally:
        stop_dropping(field, host)


def talk(ends: Ends) -> None:
    """Both directions, and an orderly end."""
    for this, other in ((ends.client, ends.server), (ends.server, ends.client)):
        this.sendall(bytes(200_000))
        assert read(other, 200_000) == bytes(200_000)
    for this, other in ((ends.client, ends.server), (ends.server, ends.client)):
        this.shutdown(socket.SHUT_WR)
        assert read_all(other) == b""


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "agent"])
@pytest.mark.parametrize(
    ("host", "hook", "rule"),
    [
        pytest.param("server", "input", f"ip saddr != 127.0.0.1 {FLAGS} syn", id="syn"),
        pytest.param("server", "output", f"{FLAGS} (syn | ack)", id="syn-ack"),
        pytest.param("server", "input", f"{FLAGS} ack", id="handshake-ack"),
    ],
)
def test_the_handshake_with_the_server(spliced: Field, host: str, hook: str, rule: str, plain: bool) -> None:
    with losing(spliced, host, rule, hook):
        ends = join(spliced, plain=plain)
    with ends:
        talk(ends)


def test_a_server_that_speaks_first_loses_the_handshakes_ack(spliced: Field) -> None:
    """It is in SYN-RECEIVED when the splice begins, and says its SYN-ACK again."""
    with losing(spliced, "server", f"{FLAGS} ack"), listen(spliced) as listener:
        client = socks_client(spliced)
        with client:
            ask(client, spliced, listener.getsockname()[1])
            assert len(read(client, 10)) == 10
            server, _ = listener.accept()
            with server:
                server.sendall(b"hello")
                assert read(client, 5) == b"hello"
                client.sendall(b"hello yourself")
                assert read(server, 14) == b"hello yourself"


def socks_client(field: Field) -> socket.socket:
    """A plain client that has done the greeting."""
    with entered(field.lab, "mobile"):
        client = socket.socket()
    client.settimeout(20)
    client.connect((field.lab.proxy.ipv4, PORT))
    client.sendall(bytes.fromhex("050100"))
    assert read(client, 2) == bytes.fromhex("0500")
    return client


def ask(client: socket.socket, field: Field, port: int, more: bytes = b"") -> None:
    address = socket.inet_aton(field.lab.server.ipv4)
    client.sendall(bytes.fromhex("05010001") + address + port.to_bytes(2, "big") + more)


@pytest.mark.parametrize("speaks_first", ["client", "server", "nobody"])
def test_the_reply(spliced: Field, speaks_first: str) -> None:
    with listen(spliced) as listener, socks_client(spliced) as client:
        own = client.getsockname()[1]
        with losing(spliced, "mobile", f"tcp dport {own} tcp flags psh"):
            port = listener.getsockname()[1]
            ask(client, spliced, port, b"early" if speaks_first == "client" else b"")
            server, _ = listener.accept()
            server.settimeout(20)
            with server:
                if speaks_first == "server":
                    server.sendall(b"banner")
                if speaks_first == "client":
                    assert read(server, 5) == b"early"
                began = time.monotonic()
                assert read(client, 10)[:2] == b"\x05\x00"
                # Said again soon: the kernel's own first time-out is 200 ms.
                assert time.monotonic() - began < 1
                if speaks_first == "server":
                    assert read(client, 6) == b"banner"
                eventually(lambda: not sockets_toward(spliced, port))
                talk(Ends(client, server, port))


def test_what_was_said_before_the_reply(spliced: Field) -> None:
    """A client that does not wait for the method selection has it after all, and the reply behind it."""
    with entered(spliced.lab, "mobile"):
        client = socket.socket()
    client.settimeout(20)
    client.connect((spliced.lab.proxy.ipv4, PORT))
    with listen(spliced) as listener, client:
        own, port = client.getsockname()[1], listener.getsockname()[1]
        with losing(spliced, "mobile", f"tcp dport {own} tcp flags psh"):
            client.sendall(bytes.fromhex("050100"))
            ask(client, spliced, port, b"early")
            server, _ = listener.accept()
            server.settimeout(20)
            with server:
                assert read(client, 12)[:4] == b"\x05\x00\x05\x00"
                assert read(server, 5) == b"early"
                eventually(lambda: not sockets_toward(spliced, port))
                talk(Ends(client, server, port))


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "agent"])
@pytest.mark.parametrize("what", ["fin of the server", "last ack to the server", "fin of the client"])
def test_the_last_packets(spliced: Field, what: str, plain: bool) -> None:
    """Both sockets of the proxy are long gone; the ends find to an end by themselves, without an RST."""
    with join(spliced, plain=plain) as ends:
        ends.client.sendall(b"question")
        assert read(ends.server, 8) == b"question"
        host, hook, rule = {
            "fin of the server": ("server", "output", f"tcp sport {ends.port} tcp flags fin"),
            "last ack to the server": ("server", "input", f"tcp dport {ends.port} {FLAGS} ack"),
            "fin of the client": ("server", "input", f"tcp dport {ends.port} tcp flags fin"),
        }[what]
        resets = aborted(spliced)
        if what == "fin of the client":
            with losing(spliced, host, rule, hook):
                ends.client.shutdown(socket.SHUT_WR)
                assert read_all(ends.server) == b""
            ends.server.close()
        else:
            ends.client.shutdown(socket.SHUT_WR)
            assert read_all(ends.server) == b""
            with losing(spliced, host, rule, hook):
                ends.server.close()
                assert read_all(ends.client) == b""
        assert read_all(ends.client) == b""
    eventually(lambda: ends.port not in {entry["local_port"] for entry in spliced.lab.server.tcp_sockets()})
    assert aborted(spliced) == resets


def aborted(field: Field) -> int:
    """RSTs that the server's TCP has got or sent, since it exists (RFC 4022, tcpEstabResets; EstabResets)."""
    snmp = [line.split() for line in field.lab.server.run(["cat", "/proc/net/snmp"]).stdout.splitlines()]
    names, values = (line for line in snmp if line[0] == "Tcp:")
    return sum(int(values[names.index(name)]) for name in ("EstabResets", "OutRsts"))


# -- resets before the splice stands, and behind what was lost ------------------------------------------------------


def sessions(field: Field) -> list[dict[str, object]]:
    """That the proxy lists."""
    done = field.lab.proxy.run([MSOCKS, "sessions", "--json", "--state", str(field.state)])
    found: list[dict[str, object]] = json.loads(done.stdout)["sessions"]
    return found


def nothing_is_left(field: Field, port: int) -> None:
    eventually(lambda: not sockets_toward(field, port))
    eventually(lambda: not states(field, port) - {"LISTEN"})
    eventually(lambda: not sessions(field))


def test_while_the_server_does_not_answer(spliced: Field) -> None:
    let_drop(spliced, "server", f"ip saddr != 127.0.0.1 {FLAGS} syn")
    with listen(spliced) as listener:
        port = listener.getsockname()[1]
        client = socks_client(spliced)
        ask(client, spliced, port)
        eventually(lambda: dropped(spliced, "server") == 1)
        reset(client)
        stop_dropping(spliced, "server")
        listener.settimeout(1.5)  # the SYN would come again after a second
        with pytest.raises(TimeoutError):
            listener.accept()
        nothing_is_left(spliced, port)


def test_at_any_moment_around_the_reply(spliced: Field) -> None:
    with listen(spliced) as listener:
        port = listener.getsockname()[1]
        for step in range(40):
            client = socks_client(spliced)
            ask(client, spliced, port, b"early" if step % 2 else b"")
            time.sleep(step * 0.0001)
            reset(client)
        waiting: list[socket.socket] = []
        listener.setblocking(False)
        eventually(lambda: all_reset(listener, waiting) and not states(spliced, port) - {"LISTEN"})
        nothing_is_left(spliced, port)
    with join(spliced, plain=True) as ends:
        echo_both_ways(ends)


def all_reset(listener: socket.socket, waiting: list[socket.socket]) -> bool:
    """Whether all connections that the server has got are reset; those that are not yet are `waiting`."""
    with contextlib.suppress(BlockingIOError):
        while True:
            server, _ = listener.accept()
            server.setblocking(False)
            waiting.append(server)
    waiting[:] = [server for server in waiting if not is_reset(server)]
    return not waiting


def is_reset(server: socket.socket) -> bool:
    try:
        data = server.recv(100)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        server.close()
    else:
        assert data == b"early", "to the server it looks like a whole conversation"
        return False
    return True


def test_of_the_server_that_refuses(spliced: Field) -> None:
    with listen(spliced) as listener:
        port = listener.getsockname()[1]
    with socks_client(spliced) as client:
        ask(client, spliced, port, b"early")
        assert read(client, 10)[:2] == b"\x05\x05"  # connection refused (RFC 1928 section 6)
        assert read(client, 1) == b""
    nothing_is_left(spliced, port)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_that_overtakes_what_was_lost(spliced: Field, who: str) -> None:
    """It is not where the receiver is, who asks (RFC 5961 section 3.2): whoever has no connection any more says so."""
    with join(spliced, plain=True) as ends:
        this, other = (ends.client, ends.server) if who == "client" else (ends.server, ends.client)
        host = "server" if who == "client" else "mobile"
        rule = f"tcp dport {other.getsockname()[1]} tcp flags psh"
        with losing(spliced, host, rule):
            this.sendall(b"lost")
        reset(this)
        other.settimeout(5)
        assert error_of(other) == errno.ECONNRESET


def test_a_path_that_loses_repeats_and_reorders(soak: bool) -> None:
    size = 100 * MB if soak else 6 * MB
    bad = LinkConfig(
        "bad", rtt_ms=3, rate_mbit=100, loss_percent=2, duplicate_percent=2, reorder_percent=2, jitter_ms=0.5
    )
    with spliced_field(bad) as made:
        transfers = [made.transfer("--download", str(size)), made.transfer("--upload", str(size))]
        for transfer in transfers:
            assert transfer.result(900 if soak else 100)["error"] == ""
        made.carried()
        assert made.lab.server.accepted_connections() == 2
