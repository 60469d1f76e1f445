"""Real clients of real servers through the splice, with a move in the middle of what takes long."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end.conftest import PORT, Field
from tests.end_to_end.ends import eventually
from tests.end_to_end.real_servers import WEB_PORT, ssh_options, start_nginx, start_postgresql, start_sshd
from tests.end_to_end.splice_fixtures import spliced_field

from msocks_lab import LinkConfig

MB = 1_000_000
SIZE = 16 * MB


@pytest.fixture(scope="module")
def town() -> Iterator[Field]:
    """Nginx and sshd on the server; two links that take some time for the file."""
    with spliced_field(LinkConfig("wifi", rtt_ms=4, rate_mbit=60), LinkConfig("lte", rtt_ms=10, rate_mbit=60)) as field:
        start_nginx(field, secrets.token_bytes(SIZE))
        start_sshd(field)
        yield field


@pytest.fixture(autouse=True)
def all_was_spliced(town: Field) -> Iterator[None]:
    yield
    town.carried()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def move_in_the_middle(field: Field, file: Path) -> None:
    """Once a part of the file has come."""
    eventually(lambda: file.exists() and file.stat().st_size > MB)
    assert field.msocks("move", "all", "--to", "lte").returncode == 0
    assert file.stat().st_size < SIZE, "the whole file had come before"


def environment(field: Field) -> dict[str, str]:
    return {"MSOCKS_CONTROL": str(field.control)}


def test_curl_downloads_from_nginx(town: Field) -> None:
    got = town.directory / "by-curl"
    curl = ["curl", "-sSf", "--proxy", f"socks5h://127.0.0.1:{PORT}", "-o", str(got), f"http://server:{WEB_PORT}/file"]
    process = town.lab.mobile.popen(curl)
    move_in_the_middle(town, got)
    assert process.wait(30) == 0, process.tail()
    assert digest(got) == digest(town.directory / "www" / "file")


def test_ssh_carries_a_file_both_ways(town: Field) -> None:
    source, got = town.directory / "www" / "file", town.directory / "by-ssh"
    ssh = ["ssh", *ssh_options(town), "root@server", "cat"]
    with source.open("rb") as given, got.open("wb") as taken:
        process = town.lab.mobile.popen(ssh, env=environment(town), stdin=given, stdout=taken)
        move_in_the_middle(town, got)
        assert process.wait(40) == 0, process.tail()
    assert digest(got) == digest(source)


def test_rsync_over_ssh(town: Field) -> None:
    source, target = town.directory / "tree", town.directory / "by-rsync"
    for number in range(50):
        path = source / str(number % 7) / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 5000))
    shell = "ssh " + " ".join(f"'{word}'" for word in ssh_options(town))
    rsync = ["rsync", "-a", "-e", shell, f"{source}/", f"root@server:{target}/"]
    town.lab.mobile.run(rsync, env=environment(town))
    (source / "3" / "3.bin").write_bytes(b"changed")
    town.lab.mobile.run(rsync, env=environment(town))
    found = {path.relative_to(target): digest(path) for path in target.rglob("*.bin")}
    assert found == {path.relative_to(source): digest(path) for path in source.rglob("*.bin")}


def test_psql_and_postgresql(town: Field) -> None:
    connection = start_postgresql(town)
    chains = town.directory / "proxychains.conf"
    chains.write_text(f"strict_chain\nproxy_dns\nquiet_mode\n[ProxyList]\nsocks5 127.0.0.1 {PORT}\n")
    script = """
        create table numbers as select n, repeat(md5(n::text), 30) as text from generate_series(1, 20000) n;
        \\copy numbers to pstdout
        select count(*), sum(n), count(distinct text) from numbers;
    """
    psql = ["proxychains4", "-q", "-f", str(chains), "psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", connection]
    lines = town.lab.mobile.run(psql, input=script).stdout.splitlines()
    assert lines[-1] == "20000|200010000|20000"
    table = [line for line in lines if "\t" in line]
    assert len(table) == 20000
    assert table[41] == "42\t" + hashlib.md5(b"42", usedforsecurity=False).hexdigest() * 30
