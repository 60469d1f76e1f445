"""Access routers that do more than forward: a middlebox that splits TCP, a captive portal."""

from __future__ import annotations

import array
import fcntl
import re
import socket
import time
from collections.abc import Iterator

import pytest
from tests.end_to_end.ends import entered
from tests.lab.conftest import PORT, lost, run_client, start_pattern_server

from msocks_lab import CommandError, CutMode, Lab, LabConfig, LinkConfig, PortalKind

BUFFER = 200_000
SIOCOUTQ = 0x5411


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    links = [LinkConfig("hotel"), LinkConfig("sat", rtt_ms=50, rate_mbit=20, pep=True, pep_buffer_bytes=BUFFER)]
    with Lab(LabConfig(links)) as built:
        start_pattern_server(built)
        yield built


def connect(lab: Lab, link: str, address: str, port: int) -> tuple[socket.socket, float]:
    """A connection over a link, and how many seconds its handshake took."""
    with entered(lab, "mobile"):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
    sock.settimeout(5)
    began = time.monotonic()
    sock.connect((address, port))
    return sock, time.monotonic() - began


def answer(lab: Lab, link: str, what: bytes = b"\x16\x03\x01hello") -> bytes:
    """What somebody who is sent `what` over a link says to it, within a while; b"-" where nothing comes."""
    sock, _ = connect(lab, link, lab.server.ipv4, 4433)
    with sock:
        sock.sendall(what)
        sock.settimeout(0.3)
        try:
            return sock.recv(4096)
        except TimeoutError:
            return b"-"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_pep_answers_the_handshake_itself_and_udp_takes_the_whole_way(lab: Lab, family: str):
    sock, took_s = connect(lab, "sat", getattr(lab.server, family), PORT)
    assert took_s < 0.02
    sock.close()
    probed = run_client(
        lab, "--device", "sat", "--echo", "5", "--interval", "0.01", "--udp", host=f"server{family[-1]}"
    )
    assert min(probed["round_trips"]) > 0.049


def test_traffic_through_a_pep_is_whole_in_both_directions(lab: Lab):
    sizes = ["--download", "700000", "--upload", "700000", "--half-close", "client"]
    assert run_client(lab, "--device", "sat", *sizes)["error"] == ""


@pytest.mark.parametrize("reset", [False, pytest.param(True, marks=pytest.mark.long)])
def test_what_a_pep_has_acked_is_lost_with_it(lab: Lab, reset: bool):
    """The sender's kernel believes that everything has arrived."""
    with entered(lab, "server"):
        listener = socket.create_server((lab.server.ipv4, 0))
    sock, _ = connect(lab, "sat", lab.server.ipv4, listener.getsockname()[1])
    server, _ = listener.accept()
    listener.close()
    time.sleep(0.1)
    lab.link("sat").cut(CutMode.SILENT)
    sock.sendall(bytes(BUFFER // 2))
    time.sleep(0.1)
    unacked = array.array("i", [0])
    fcntl.ioctl(sock, SIOCOUTQ, unacked)
    state = lab.link("sat").pep()
    lab.link("sat").lose_pep(reset=reset)
    lab.link("sat").restore()
    assert (unacked[0], state.connections, state.held_up) == (0, 1, BUFFER // 2)
    assert lab.link("sat").pep().held_up == 0
    server.settimeout(0.5)
    with pytest.raises((TimeoutError, ConnectionResetError)):
        server.recv(1)  # not a byte of it ever comes
    if reset:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    for each in (sock, server):
        each.close()


def test_a_link_without_a_pep_has_nothing_to_lose(lab: Lab):
    with pytest.raises(CommandError, match="has no PEP"):
        lab.link("hotel").lose_pep()
    with pytest.raises(CommandError, match="has a PEP"):
        lab.link("sat").cut(CutMode.RESET)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (PortalKind.HTTP, rb"HTTP/1.1 302 "),
        (PortalKind.GARBAGE, rb"\x80\x81"),
        pytest.param(PortalKind.MUTE, rb"-\Z", marks=pytest.mark.long),
        pytest.param(PortalKind.CLOSE, rb"\Z", marks=pytest.mark.long),
    ],
)
def test_a_portal_answers_in_everybodys_place(lab: Lab, kind: PortalKind, says: bytes):
    hotel = lab.link("hotel")
    hotel.portal(kind, udp=kind is PortalKind.GARBAGE)
    try:
        assert re.match(says, answer(lab, "hotel"))
        assert hotel.describe()["state"] == "captive"
        assert lost(lab, "hotel", count=3) == (0 if kind is PortalKind.GARBAGE else 3)
    finally:
        hotel.log_in()
    assert hotel.describe()["state"] == "up"
    assert run_client(lab, "--device", "hotel", "--download", "1000")["error"] == ""


def test_a_portal_shows_a_certificate_of_its_own(lab: Lab):
    lab.link("hotel").portal(PortalKind.CERTIFICATE)
    try:
        argv = ["openssl", "s_client", "-connect", f"{lab.server.ipv4}:4433", "-tls1_3"]
        shown = lab.mobile.run(["timeout", "5", *argv], check=False, input="").stdout
    finally:
        lab.link("hotel").log_in()
    assert "CN = portal.example" in shown or "CN=portal.example" in shown, shown


def test_who_is_not_captive_cannot_log_in(lab: Lab):
    with pytest.raises(CommandError, match="not captive"):
        lab.link("hotel").log_in()
