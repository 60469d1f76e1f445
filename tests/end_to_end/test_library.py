"""The library in real programs on the mobile host, without an agent."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import LTE, WIFI, Field

from msocks_lab import Lab, LabConfig
from msocks_lab.certificate import self_signed

HERE = Path(__file__).parent
# A datapath is no affair of the library's.
pytestmark = pytest.mark.parametrize("datapath", ["splice"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def run(datapath: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs a program of library_program.py on the mobile host; the result is what it prints."""
    with Lab(LabConfig([WIFI, LTE])) as lab:
        field = Field(lab, datapath)
        field.start_proxy()
        certificate, key = self_signed(field.directory, "server")
        lab.server.popen([sys.executable, str(HERE / "echo_servers.py"), str(certificate), str(key)])
        for port in (7001, 7002, 7003):
            lab.server.wait_listening(port)

        def established() -> set[int]:
            return {each["remote_port"] for each in lab.server.tcp_sockets() if each["state"] == "ESTABLISHED"}

        def run_program(name: str, loop: str = "asyncio") -> dict[str, Any]:
            program = str(HERE / "library_program.py")
            argv = [sys.executable, program, name, str(field.access), str(certificate), loop]
            before = established()
            output = lab.mobile.run(argv, timeout=60).stdout
            result: dict[str, Any] = json.loads(output)
            result["connections"] = lab.server.accepted_connections()
            result["stays"] = [*(established() - before)]
            return result

        yield run_program


def test_streams_move_and_tell(run: Callable[..., dict[str, Any]]) -> None:
    result = run("streams")
    assert result["seen"] == ["lte", "wifi", "lte"]
    assert result["rest"] == 0
    assert result["peer"] == ["server", 7001]
    assert len(result["session"]) == 32
    assert result["events"] == ["Moved", "Moved", "Moved", "Ended"]
    assert result["connections"] == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("program", ["tls", "start_tls"])
def test_tls_is_end_to_end_and_moves(run: Callable[..., dict[str, Any]], program: str, loop: str) -> None:
    result = run(program, loop)
    assert result["seen"] == ["lte", "wifi"]
    assert result["tls"] == "TLSv1.3"


def test_failures_are_those_that_programs_know(run: Callable[..., dict[str, Any]]) -> None:
    result = run("refused")
    assert result["closed"] == ["DestinationError", 5, True]
    assert result["denied"][1:] == [2, True]
    assert result["unknown"][1:] == [4, True]
    assert result["link"] == ["eth9"]
    assert result["after"] == ["still here"]


def test_a_blocking_socket_is_a_real_one_and_moves(run: Callable[..., dict[str, Any]]) -> None:
    result = run("blocking")
    assert result["seen"] == ["lte", "wifi"]
    assert result["rest"] == 0
    assert result["events"][:2] == ["Moved", "Moved"]
    assert result["tls"] == "through tls"


@pytest.mark.parametrize("program", ["late", "late_blocking"])
def test_who_reads_late_gets_all_that_the_server_had_sent(run: Callable[..., dict[str, Any]], program: str) -> None:
    result = run(program)
    assert (result["ended"], result["last"]) == (True, "Ended"), "it was over before, or never"
    assert result["whole"]


def test_datagrams_move(run: Callable[..., dict[str, Any]]) -> None:
    result = run("datagrams")
    assert result["seen"] == ["wifi", "lte", "wifi", "lte"]
    assert result["sources"] == [["2001:db8:f1::2", 7000]] * 3
    assert result["events"] == ["Moved", "Moved", "Moved", "Ended"]
    assert result["ended"] == ["SessionEnded"] * 3
    assert result["dropped"] == 0


def test_what_cannot_go_on_ends_at_both_ends(run: Callable[..., dict[str, Any]]) -> None:
    """The last test: a link is down afterwards."""
    result = run("miscounting")
    assert "bytes were lost" in result["read"]
    assert result["stays"] == []
