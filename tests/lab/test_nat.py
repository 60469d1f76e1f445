"""An uplink behind address translation."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from msocks_lab import CommandError, Lab, LabProcess

PORT = 7000

# Tells every datagram's sender its own address; with a delay, if the datagram says so.
MIRROR = f"""
import socket, threading, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", {PORT}))
def answer(data, sender):
    time.sleep(float(data or 0)); s.sendto(("%s:%d" % sender).encode(), sender)
while True: threading.Thread(target=answer, args=s.recvfrom(100)).start()
"""
# Sends what comes on stdin, line by line, and prints the answers.
ASK = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lte"); s.connect(("server", {PORT})); s.settimeout(2.2)
for line in sys.stdin:
    s.send(line.strip().encode())
    try: print(s.recv(100).decode(), flush=True)
    except TimeoutError: print("nothing", flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def mirror(lab: Lab) -> Iterator[None]:
    process = lab.server.popen(["python3", "-c", MIRROR])
    lab.server.wait_listening(PORT, protocol="udp")
    yield
    process.stop()


@pytest.fixture
def asker(lab: Lab) -> Iterator[LabProcess]:
    process = lab.mobile.popen(["python3", "-c", ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()


def ask(asker: LabProcess, delay: float = 0) -> str:
    assert asker.stdin is not None
    assert asker.stdout is not None
    asker.stdin.write(f"{delay}\n".encode())
    asker.stdin.flush()
    return asker.stdout.readline().decode().strip()


def test_the_server_sees_the_public_address(lab: Lab, asker: LabProcess):
    assert ask(asker).partition(":")[0] == lab.link("lte").describe()["public_address"]


def test_a_mapping_stays_while_it_is_used(asker: LabProcess):
    assert len({ask(asker, 0.3) for _ in range(5)}) == 1


def test_rebinding_gives_a_new_port(lab: Lab, asker: LabProcess):
    first = ask(asker)
    lab.link("lte").rebind_nat()
    second = ask(asker)
    assert second != first
    assert second.partition(":")[0] == first.partition(":")[0]


def test_an_idle_mapping_expires(lab: Lab, asker: LabProcess):
    """The time-out of this link is 1 s; an answer that takes longer does not come back."""
    first = ask(asker)
    assert ask(asker, 0.5) == first
    assert ask(asker, 1.8) == "nothing"


def test_nobody_reaches_the_mobile_from_outside(lab: Lab):
    assert lab.server.run(["ip", "route", "get", "10.2.0.2"]).returncode == 0
    script = "import socket; s=socket.socket(); s.settimeout(0.5); s.connect(('10.2.0.2', 80))"
    assert lab.server.run(["python3", "-c", script], check=False).returncode == 1
    public = script.replace("10.2.0.2", lab.link("lte").describe()["public_address"])
    assert lab.server.run(["python3", "-c", public], check=False).returncode == 1


def test_a_tcp_connection_without_mapping_is_dead_and_not_picked_up(lab: Lab, tmp_path: Path):
    listener = """
import socket
s = socket.create_server(("", 7001)); c, _ = s.accept()
while d := c.recv(100): print(d.decode(), flush=True)
"""
    server = lab.server.popen(["python3", "-c", listener], stdout=subprocess.PIPE)
    lab.server.wait_listening(7001)
    sender = """
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lte"); s.connect(("server4", 7001))
for line in sys.stdin: s.send(line.strip().encode())
"""
    client = lab.mobile.popen(["python3", "-c", sender], stdin=subprocess.PIPE)
    assert client.stdin is not None
    assert server.stdout is not None
    client.stdin.write(b"before\n")
    client.stdin.flush()
    assert server.stdout.readline() == b"before\n"
    capture = lab.server.capture(tmp_path / "late.pcap", "tcp port 7001", "eth0")
    lab.link("lte").rebind_nat()
    client.stdin.write(b"after\n")
    client.stdin.flush()
    time.sleep(0.8)
    capture.stop()
    assert lab.server.run(["tcpdump", "-n", "-r", str(tmp_path / "late.pcap")]).stdout == ""
    client.kill()
    server.kill()


def test_a_link_without_nat_has_nothing_to_rebind(lab: Lab):
    with pytest.raises(CommandError, match="wifi has no NAT"):
        lab.link("wifi").rebind_nat()


def test_without_nat_the_server_sees_the_mobile(lab: Lab):
    capture_of = "import socket; s=socket.create_connection(('server4',9000)); print(s.getsockname()[0])"
    local = lab.mobile.run(["python3", "-c", capture_of]).stdout.strip()
    assert local in lab.link("wifi").addresses
    assert socket.inet_aton(local)[0] == 10
