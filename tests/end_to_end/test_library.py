"""The library in real programs on the mobile host, without an agent."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.end_to_end.conftest import LTE, WIFI, Field

from msocks_lab import Lab, LabConfig

HERE = Path(__file__).parent
# A datapath is no affair of the library's.
pytestmark = pytest.mark.parametrize("datapath", ["splice"], indirect=True, scope="module")


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for the name `server`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("server")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "server.crt", directory / "server.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@pytest.fixture(scope="module")
def run(datapath: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs a program of library_program.py on the mobile host; the result is what it prints."""
    with Lab(LabConfig([WIFI, LTE])) as lab:
        field = Field(lab, datapath)
        field.start_proxy()
        certificate, key = self_signed(field.directory)
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


def test_what_cannot_go_on_ends_at_both_ends(run: Callable[..., dict[str, Any]]) -> None:
    """The last test: a link is down afterwards."""
    result = run("miscounting")
    assert "bytes were lost" in result["read"]
    assert result["stays"] == []
