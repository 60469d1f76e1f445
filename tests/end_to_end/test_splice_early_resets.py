"""A client that resets its connection before the splice stands, at any moment: nobody is left waiting for it."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time

import pytest
from tests.end_to_end.conftest import MSOCKS, Field
from tests.end_to_end.ends import dropped, eventually, join, let_drop, listen, read, sockets_toward, stop_dropping
from tests.end_to_end.splice_fixtures import spliced
from tests.end_to_end.test_splice_ends import echo_both_ways, error_of, reset, states
from tests.end_to_end.test_splice_losses import FLAGS, ask, losing, socks_client

__all__ = ["spliced"]


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
