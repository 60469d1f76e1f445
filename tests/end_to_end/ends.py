"""The two ends of connections, played by the test: sockets of the mobile host and of the server host."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.end_to_end.conftest import MSOCKS, PORT, Field

from msocks_lab import Lab
from msocks_lab.namespaces import CLONE_NEWNET, setns
from msocks_lab.socks import connect_through

PATIENCE_S = 20.0
_SIOCOUTQNSD = 0x894B


@contextlib.contextmanager
def entered(lab: Lab, host: str) -> Iterator[None]:
    """The thread is in the network of a host: sockets that it makes are that host's for good."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    other = os.open(f"/proc/{lab.supervisor_pid}/fd/{lab.namespaces(host)['net']}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(other, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)
        os.close(other)


@dataclass(frozen=True, slots=True)
class Ends:
    """A connection: the client's socket and the server's, and where the server listens."""

    client: socket.socket
    server: socket.socket
    port: int

    def __enter__(self) -> Ends:
        return self

    def server_unsent(self) -> int:
        """Bytes that the server has written and its kernel has not sent (SIOCOUTQNSD)."""
        unsent = array.array("i", [0])
        fcntl.ioctl(self.server, _SIOCOUTQNSD, unsent)
        return unsent[0]

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()


def listen(field: Field, receive_buffer: int = 0) -> socket.socket:
    """A listener of the server host, on a port of its own; with SO_RCVBUF where one is given."""
    with entered(field.lab, "server"):
        listener = socket.socket()
    if receive_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    listener.bind((field.lab.server.ipv4, 0))
    listener.listen(64)
    listener.settimeout(PATIENCE_S)
    return listener


def connect(field: Field, port: int, *, plain: bool = False, receive_buffer: int = 0) -> socket.socket:
    """A client on the mobile host, connected to the server's port.

    By the agent; or `plain`, straight to the proxy as a SOCKS5 client that knows nothing of MSOCKS.
    """
    with entered(field.lab, "mobile"):
        client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(PATIENCE_S)
    client.connect((field.lab.proxy.ipv4 if plain else "127.0.0.1", PORT))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connect_through(client, field.lab.server.ipv4, port)
    return client


def join(
    field: Field,
    *,
    plain: bool = False,
    receive_buffer: int = 0,
    server_receive_buffer: int = 0,
    is_spliced: bool = True,
) -> Ends:
    """A client and the server's end of its connection; which the splice carries, or does not."""
    with listen(field, server_receive_buffer) as listener:
        port = listener.getsockname()[1]
        client = connect(field, port, plain=plain, receive_buffer=receive_buffer)
        server, _ = listener.accept()
    server.settimeout(PATIENCE_S)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if is_spliced:
        eventually(lambda: not sockets_toward(field, port))
    else:
        assert sockets_toward(field, port)
    return Ends(client, server, port)


def sockets_toward(field: Field, port: int) -> int:
    """How many sockets the proxy's host has toward a port of the server. One that splices has none."""
    return sum(entry["remote_port"] == port for entry in field.lab.proxy.tcp_sockets())


def read(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or less at the end."""
    data = bytearray()
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return bytes(data)


def read_all(sock: socket.socket) -> bytes:
    """All until the end."""
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


def fill(sock: socket.socket, quiet_s: float = 1.0) -> int:
    """Write until nobody has taken anything for a while; how many bytes were taken."""
    sock.setblocking(False)
    taken, last = 0, time.monotonic()
    while time.monotonic() - last < quiet_s:
        try:
            taken += sock.send(bytes(1 << 16))
            last = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    sock.settimeout(PATIENCE_S)
    return taken


def eventually(condition: Callable[[], bool], timeout: float = 10) -> None:
    """Wait until it holds; fail where it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


def datapath_at_proxy(field: Field) -> set[tuple[str, str]]:
    """What the proxy's operator is told: datapath and reason of every session."""
    listed = json.loads(field.lab.proxy.run([MSOCKS, "sessions", "--json", "--state", str(field.state)]).stdout)
    return {(session["datapath"], session["datapath_reason"]) for session in listed["sessions"]}


def let_drop(field: Field, host: str, rule: str, hook: str = "input") -> None:
    """From now on a host drops the first packet that `rule` (of nftables) matches, and no other."""
    table = f"""
table inet losses
delete table inet losses
table inet losses {{
    chain losses {{
        type filter hook {hook} priority raw; policy accept;
        {rule} numgen inc mod 1000000000 == 0 counter drop comment "the first"
    }}
}}
"""
    field.lab.host(host).run(["nft", "-f", "-"], input=table)


def dropped(field: Field, host: str) -> int:
    """How many packets that has been: 1, or 0 before it came."""
    listed = json.loads(field.lab.host(host).run(["nft", "-j", "list", "table", "inet", "losses"]).stdout)
    (rule,) = (item["rule"] for item in listed["nftables"] if "rule" in item)
    return int(next(part["counter"]["packets"] for part in rule["expr"] if "counter" in part))


def stop_dropping(field: Field, host: str) -> None:
    """Take the rule away."""
    field.lab.host(host).run(["nft", "delete", "table", "inet", "losses"])
