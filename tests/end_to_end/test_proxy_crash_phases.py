"""`kill -9` of the proxy in the middle of a hundred transfers, and of whatever else is under way at that moment."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.end_to_end.conftest import PORT, Field
from tests.end_to_end.ends import PATIENCE_S, eventually, listen, read, sockets_toward
from tests.end_to_end.splice_fixtures import own_spliced
from tests.end_to_end.test_proxy_crash import MB, all_durable, ask, dropping, moved, sessions

from msocks_lab import CutMode

__all__ = ["own_spliced"]

COUNT = 100
BESIDE = 10
RATE = 4 * MB // COUNT
SIZE = str(130 * RATE)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_transfers_outlive_a_kill_in_every_phase(own_spliced: Field) -> None:
    field = own_spliced
    already = field.lab.server.accepted_connections()
    transfers = [field.transfer("--download", SIZE, "--upload", SIZE, "--rate", str(RATE)) for _ in range(COUNT)]
    for transfer in transfers:
        transfer.wait_for(RATE // 10, 60)
    eventually(lambda: all_durable(field), 30)
    in_handshakes_and_before_the_reply(field)
    while_parked(field)
    while_reconnecting(field)
    for transfer in transfers:
        assert transfer.process.poll() is None, "it had ended before the last crash"
    for transfer in transfers:
        assert transfer.result(200)["error"] == ""
    assert field.lab.server.accepted_connections() - already == COUNT + 2 * BESIDE
    eventually(lambda: not sessions(field), 30)


def in_handshakes_and_before_the_reply(field: Field) -> None:
    """The transfers run. Some more are not connected yet, and of some the client has not heard that they are."""
    with contextlib.ExitStack() as stack:
        unheard, unanswered = stack.enter_context(listen(field)), stack.enter_context(listen(field))
        pool = stack.enter_context(ThreadPoolExecutor(2 * BESIDE))
        port = unanswered.getsockname()[1]
        replies = f"tcp sport {PORT} tcp flags & psh == psh meta length 56-300"
        with dropping(field, "mobile", replies), dropping(field, "server", f"tcp dport {port}"):
            asks = [pool.submit(ask, field, unheard.getsockname()[1]) for _ in range(BESIDE)]
            servers = [stack.enter_context(unheard.accept()[0]) for _ in range(BESIDE)]
            asks += [pool.submit(ask, field, port) for _ in range(BESIDE)]
            eventually(lambda: sockets_toward(field, port) == BESIDE)
            eventually(lambda: sum(each["durable"] for each in sessions(field)) == COUNT + BESIDE)
            field.kill_proxy()
        field.start_proxy("--open")
        clients = [stack.enter_context(each.result()) for each in asks]
        servers += [stack.enter_context(unanswered.accept()[0]) for _ in range(BESIDE)]
        talk(clients, servers)


def talk(clients: Sequence[socket.socket], servers: Sequence[socket.socket]) -> None:
    """Each client has a server of its own, and hears of it what it has said."""
    words = [f"client {number:3}".encode() for number in range(len(clients))]
    for client, word in zip(clients, words, strict=True):
        client.sendall(word)
    heard = []
    for server in servers:
        server.settimeout(PATIENCE_S)
        heard.append(read(server, len(words[0])))
        server.sendall(heard[-1])
    assert sorted(heard) == words
    for client, word in zip(clients, words, strict=True):
        assert read(client, len(word)) == word


def all_run(field: Field) -> bool:
    return {state for _, state in moved(field)} == {"live"}


def while_parked(field: Field) -> None:
    for link in field.lab.links:
        link.cut(CutMode.CARRIER)
    eventually(lambda: {state for _, state in moved(field)} == {"parked"}, 30)
    field.kill_proxy()
    time.sleep(1)
    field.start_proxy("--open")
    for link in field.lab.links:
        link.restore()
    eventually(lambda: all_run(field), 40)


def while_reconnecting(field: Field) -> None:
    with ThreadPoolExecutor(1) as pool:
        for turn, begun_s in enumerate((0.3, 0.5, 0.8)):  # `msocks move` takes a while to start
            moving = pool.submit(field.msocks, "move", "all", "--to", ("lte", "wifi")[turn % 2], check=False)
            time.sleep(begun_s)
            field.kill_proxy()
            field.start_proxy("--open")
            moving.result()
            eventually(lambda: all_run(field), 40)
