"""`msocks nc` takes nothing of the rate: what comes through it comes as quickly as from the agent's own port."""

from __future__ import annotations

import shlex
import sys

import pytest
from tests.end_to_end.conftest import MSOCKS, PORT, Field
from tests.end_to_end.splice_fixtures import own_spliced

__all__ = ["own_spliced"]

FILE_PORT = 7090
SIZE = 300_000_000
GIGABIT = 125_000_000  # bytes per second
ROUNDS = 3
# At the rate of a gigabit Ethernet, whose sender paces itself (SO_MAX_PACING_RATE, socket(7)).
SERVE = f"""
import socket, sys, tempfile
listener = socket.create_server((sys.argv[1], {FILE_PORT}))
with tempfile.TemporaryFile() as file:
    file.truncate({SIZE})
    while True:
        peer, _ = listener.accept()
        with peer:
            peer.setsockopt(socket.SOL_SOCKET, 47, {GIGABIT})
            peer.recv(1000)
            peer.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
            peer.sendfile(file)
"""
# How many bytes came, and how many a second from the first one on.
COUNT = """
import sys, time
read = sys.stdin.buffer.raw.read
count, began = len(read(1)), time.monotonic()
while data := read(1 << 20):
    count += len(data)
print(count, count / (time.monotonic() - began))
"""


@pytest.mark.long
def test_nc_copies_at_the_rate_of_the_agents_port(own_spliced: Field) -> None:
    lab = own_spliced.lab
    lab.server.popen([sys.executable, "-c", SERVE, lab.server.ipv4])
    lab.server.wait_listening(FILE_PORT)
    count = shlex.join([sys.executable, "-c", COUNT])
    request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'"
    by_nc = f"{request} | {MSOCKS} nc --control {own_spliced.control} {lab.server.ipv4} {FILE_PORT} | {count}"
    by_port = f"curl -sS --proxy socks5h://127.0.0.1:{PORT} http://{lab.server.ipv4}:{FILE_PORT}/ | {count}"
    rates: dict[str, list[float]] = {by_nc: [], by_port: []}
    for _ in range(ROUNDS):
        for command, found in rates.items():
            count_, rate = lab.mobile.run(["sh", "-c", command]).stdout.split()
            assert int(count_) >= SIZE
            found.append(float(rate))
    assert max(rates[by_port]) > 0.8 * GIGABIT, "the machine is too busy to tell anything"
    assert max(rates[by_nc]) > 0.95 * max(rates[by_port]), rates
