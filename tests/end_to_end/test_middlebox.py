"""A link whose middlebox ACKs for the far end: what dies with its buffers is sent again on another link."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.end_to_end.conftest import Field
from tests.end_to_end.ends import Ends, join, read
from tests.end_to_end.test_moves import MB

from msocks_lab import CutMode, LinkConfig

SATELLITE = LinkConfig("sat", rtt_ms=60, rate_mbit=20, pep=True)
OTHER = LinkConfig("lte", rtt_ms=30, rate_mbit=20)
SMALL = 16_384
"""The buffer of a reader: who pauses shall be felt through all buffers on the way."""


@pytest.fixture
def behind_a_middlebox(make_field: Callable[..., Field]) -> Field:
    """A proxy, and an agent that prefers the satellite and has found out what is on it."""
    field = make_field(SATELLITE, OTHER)
    field.start_proxy()
    field.start_agent("sat", "lte")

    def recognised() -> bool:
        links = json.loads(field.msocks("links", "--json").stdout)["links"]
        return [link["middlebox"] for link in links] == [True, False]

    field.wait_until(recognised)
    return field


@pytest.mark.parametrize("datapath", ["splice"], indirect=True)
def test_a_link_behind_a_middlebox_that_falls_silent_and_then_dies(behind_a_middlebox: Field) -> None:
    a_middlebox_dies(behind_a_middlebox, "falls silent before", 2 * MB)


@pytest.mark.long
@pytest.mark.parametrize("how", ["vanishes", "resets", "falls silent before"])
def test_a_middlebox_that_dies_with_full_buffers_costs_no_byte(behind_a_middlebox: Field, how: str) -> None:
    a_middlebox_dies(behind_a_middlebox, how, 5 * MB)


def a_middlebox_dies(field: Field, how: str, size: int) -> None:
    satellite = field.lab.link("sat")
    transfer = field.transfer("--download", str(size), "--upload", str(2 * size))
    transfer.wait_for(MB // 2)
    if how == "falls silent before":
        began = satellite.cut(CutMode.SILENT).done
        held = satellite.pep()
        field.wait_until(lambda: field.flows()[0]["link"] == "lte", timeout=5)
        assert time.monotonic() - began < 2.5, "its ACKs were taken for signs of life"
        satellite.lose_pep()
    else:
        held = satellite.pep()
        satellite.lose_pep(reset=how == "resets")
        satellite.cut(CutMode.CARRIER)
    assert held.held_up > 100_000, "nothing was in it"
    result = transfer.result()
    assert result["error"] == "", result
    assert field.accepted_connections() == 1
    (flow,) = field.flows()
    reason = "middlebox" if field.datapath == "splice" else "chosen-by-operator"
    assert (flow["datapath"], flow["datapath_reason"]) == ("relay", reason)


@contextlib.contextmanager
def writing(sock: socket.socket, data: bytes) -> Iterator[list[OSError]]:
    """Somebody writes all of it, as fast as it is taken, and ends the direction; the error, where that fails."""
    failures: list[OSError] = []

    def write() -> None:
        sock.settimeout(30)
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except ConnectionError as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield failures
    finally:
        thread.join()


def read_until_reset(sock: socket.socket) -> bytes:
    """All that comes before an RST; fails where there is none."""
    got = b""
    while True:
        try:
            piece = sock.recv(1 << 16)
        except ConnectionResetError:
            return got
        assert piece, "it ended as if that were all"
        got += piece


def open_over(field: Field, link: str) -> Ends:
    """A connection whose first leg goes over a link."""
    ends = join(field, receive_buffer=SMALL, is_spliced=False)
    assert field.flows()[-1]["link"] == link
    return ends


@pytest.mark.long
def test_what_a_middlebox_holds_for_a_reader_that_pauses_is_sent_again(behind_a_middlebox: Field) -> None:
    """The server, and the proxy's kernel, have been told long ago that it has arrived."""
    field = behind_a_middlebox
    satellite = field.lab.link("sat")
    data = bytes(range(256)) * 30_000
    with open_over(field, "sat") as ends, writing(ends.server, data):
        began = read(ends.client, 1000)
        field.wait_until(lambda: satellite.pep().held_down > 300_000)
        satellite.lose_pep()
        satellite.cut(CutMode.CARRIER)
        assert began + read(ends.client, len(data)) == data
        assert ends.client.recv(1) == b""
    assert field.flows()[-1]["error"] is None


@pytest.mark.long
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_last_byte_and_an_end_that_die_in_a_middlebox_are_said_again(
    behind_a_middlebox: Field, direction: str
) -> None:
    """Both directions have ended, and all was ACKed: the connection is not over before the ends have it."""
    field = behind_a_middlebox
    satellite = field.lab.link("sat")
    with open_over(field, "sat") as ends:
        source, sink = (ends.server, ends.client) if direction == "download" else (ends.client, ends.server)
        source.sendall(b"first")
        assert read(sink, 5) == b"first"
        time.sleep(0.5)
        satellite.cut(CutMode.SILENT)
        source.sendall(b"last words")
        source.shutdown(socket.SHUT_WR)
        sink.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        satellite.lose_pep()
        assert read(sink, 100) == b"last words"
        assert source.recv(1) == b""
    field.wait_until(lambda: field.flows()[-1]["state"] == "ended")
    assert field.flows()[-1]["error"] is None


@pytest.mark.long
def test_a_move_away_from_a_middlebox_drains_it(behind_a_middlebox: Field) -> None:
    field = behind_a_middlebox
    transfer = field.transfer("--download", str(5 * MB), "--upload", str(5 * MB))
    transfer.wait_for(MB)
    for link in ("lte", "sat", "lte"):
        assert field.msocks("move", "all", "--to", link).returncode == 0
        transfer.wait_for(transfer.received() + MB // 2)
    assert transfer.result()["error"] == ""


@pytest.fixture
def moved_in(behind_a_middlebox: Field) -> Iterator[Ends]:
    """A connection that was spliced over another link, in use both ways, and now has a leg through the middlebox."""
    field = behind_a_middlebox
    assert field.msocks("links", "--json").stdout.count('"middlebox": true') == 1
    field.lab.link("sat").cut(CutMode.SILENT)
    field.wait_until(lambda: "sat   silent" in field.msocks("links").stdout)
    with join(field, receive_buffer=SMALL) as ends:
        ends.client.sendall(b"up")
        ends.server.sendall(b"down")
        assert (read(ends.server, 2), read(ends.client, 4)) == (b"up", b"down")
        field.lab.link("sat").restore()
        field.wait_until(lambda: field.flows()[-1]["link"] == "sat")
        yield ends


@pytest.mark.long
@pytest.mark.parametrize("datapath", ["splice"], indirect=True)
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_spliced_connection_that_moves_to_such_a_link_is_relayed_and_loses_nothing(
    behind_a_middlebox: Field, moved_in: Ends, direction: str
) -> None:
    field, satellite = behind_a_middlebox, behind_a_middlebox.lab.link("sat")
    down = direction == "download"
    field.wait_until(lambda: field.flows()[0]["datapath_reason"] == "middlebox")
    source, sink = (moved_in.server, moved_in.client) if down else (moved_in.client, moved_in.server)
    data = bytes(range(256)) * 30_000
    with writing(source, data):
        began = read(sink, 100_000)
        field.wait_until(lambda: (satellite.pep().held_down if down else satellite.pep().held_up) > 150_000)
        satellite.lose_pep()
        satellite.cut(CutMode.CARRIER)
        assert began + read(sink, len(data)) == data
    moved_in.client.sendall(b"and") if down else moved_in.server.sendall(b"and")
    assert read(source, 3) == b"and"
    assert field.accepted_connections() == 1
    assert field.flows()[-1]["error"] is None


@pytest.mark.long
@pytest.mark.parametrize("datapath", ["splice"], indirect=True)
def test_a_spliced_transfer_goes_through_a_middlebox_in_both_directions(behind_a_middlebox: Field) -> None:
    """In the middle of it, back and forth; the splice is left at the first turn."""
    field = behind_a_middlebox
    field.lab.link("sat").cut(CutMode.CARRIER)
    field.wait_until(lambda: "sat   down" in field.msocks("links").stdout)
    transfer = field.transfer("--download", str(16 * MB), "--upload", str(10 * MB))
    transfer.wait_for(MB)
    assert field.flows()[-1]["datapath"] == "splice"
    field.lab.link("sat").restore()
    field.wait_until(lambda: json.loads(field.msocks("links", "--json").stdout)["links"][0]["middlebox"])
    for link in ("lte", "sat", "lte"):
        field.msocks("move", "all", "--to", link)
        transfer.wait_for(transfer.received() + MB // 2)
    result = transfer.result()
    assert result["error"] == "", result
    assert field.accepted_connections() == 1


@pytest.fixture
def behind_a_near_middlebox(make_field: Callable[..., Field]) -> Field:
    """The same of a link that is too short for anybody to find out what is on it."""
    field = make_field(replace(SATELLITE, rtt_ms=14), OTHER)
    field.start_proxy()
    field.start_agent("sat", "lte")
    field.wait_until(lambda: field.msocks("links").stdout.count(" up ") == 2)
    return field


@pytest.mark.parametrize(
    ("datapath", "direction"),
    [
        ("splice", "download"),
        pytest.param("splice", "upload", marks=pytest.mark.long),
        pytest.param("relay", "download", marks=pytest.mark.long),
        pytest.param("relay", "upload", marks=pytest.mark.long),
    ],
    indirect=["datapath"],
)
def test_what_dies_in_a_middlebox_that_nobody_has_recognised_is_not_lost_in_silence(
    behind_a_near_middlebox: Field, direction: str
) -> None:
    """Whoever has sent it has let go of it: both ends get an RST, and neither a gap nor an end."""
    field, satellite = behind_a_near_middlebox, behind_a_near_middlebox.lab.link("sat")
    down, data = direction == "download", bytes(range(256)) * 120_000
    if not down:
        time.sleep(1.5)  # while it may be recognised yet, the client lets go of nothing
    with join(field, receive_buffer=SMALL, is_spliced=field.datapath == "splice") as ends:
        source, sink = (ends.server, ends.client) if down else (ends.client, ends.server)
        with writing(source, data) as failures:
            got = read(sink, 100_000)
            field.wait_until(lambda: (satellite.pep().held_down if down else satellite.pep().held_up) > 150_000)
            assert '"middlebox": true' not in field.msocks("links", "--json").stdout
            satellite.lose_pep()
            satellite.cut(CutMode.CARRIER)
            got += read_until_reset(sink)
            assert data.startswith(got)
            assert len(got) < len(data)
        assert failures, "the sender believes that all has arrived"
    assert "bytes were lost" in str(field.flows()[-1]["error"])
