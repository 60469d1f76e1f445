"""Real clients of real servers while the network they began on goes away (`--soak` only).

Each begins on wifi, which loses its carrier in the middle of what is transferred. That it did, and that the rest came
over lte, is seen at the mobile's interfaces.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import PORT, Field
from tests.end_to_end.real_servers import (
    GIT_PORT,
    WEB_PORT,
    ssh_options,
    start_git_over_https,
    start_nginx,
    start_postgresql,
    start_redis,
    start_sshd,
)
from tests.end_to_end.run_fixtures import Runs, links
from tests.end_to_end.splice_fixtures import spliced_field

from msocks_lab import CutMode, LabProcess, LinkConfig

MB = 1_000_000
SIZE = 16 * MB
LINKS = (LinkConfig("wifi", rtt_ms=5, rate_mbit=50), LinkConfig("lte", rtt_ms=20, rate_mbit=50))
ROWS = 20_000


@pytest.fixture(scope="module")
def roaming() -> Iterator[Runs]:
    with spliced_field(*LINKS) as field:
        runs = Runs(field)
        yield runs
        runs.until(lambda: not runs.keepers(), "a keeper is left")


@pytest.fixture(autouse=True)
def wifi_is_back(roaming: Runs) -> Iterator[None]:
    """Every test begins on wifi, and leaves a working one; all its sessions were spliced."""
    field = roaming.field
    field.wait_until(lambda: all(link["rtt_ms"] is not None for link in links(field)))
    yield
    if field.lab.link("wifi").describe()["state"] != "up":
        field.lab.link("wifi").restore()
    field.wait_until(lambda: all(link["state"] == "up" for link in links(field)))
    field.carried()


@pytest.fixture(scope="module")
def served(roaming: Runs) -> Path:
    return start_nginx(roaming.field, secrets.token_bytes(SIZE))


@pytest.fixture(scope="module")
def repository(roaming: Runs) -> Path:
    """One commit that does not compress."""
    path = roaming.field.directory / "repository"
    path.mkdir()
    git(path, "init", "--quiet")
    (path / "large").write_bytes(secrets.token_bytes(SIZE))
    git(path, "add", "large")
    git(path, "-c", "user.name=someone", "-c", "user.email=someone@example", "commit", "--quiet", "-m", "large")
    return path


def git(path: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", path, *words], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def over_two_networks(field: Field, process: LabProcess, timeout: float = 60) -> None:
    """Wifi goes once a part has come; the program ends well, by what came over lte."""
    wifi, lte = field.lab.link("wifi"), field.lab.link("lte")
    before = wifi.counters()
    field.wait_until(lambda: wifi.counters().since(before).bytes_down > 2 * MB, timeout=30)
    there = lte.counters()
    wifi.cut(CutMode.CARRIER)
    assert process.poll() is None, "it had ended before the network changed"
    assert process.wait(timeout) == 0, process.tail()
    assert lte.counters().since(there).bytes_down > 2 * MB


def run_to_file(roaming: Runs, got: Path, *words: str, **options: Any) -> None:
    """``msocks run`` with this program, over two networks; what it prints is in the file then."""
    with got.open("wb") as taken:
        over_two_networks(roaming.field, roaming.popen(*words, stdout=taken, **options))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_curl(roaming: Runs, served: Path) -> None:
    got = roaming.field.directory / "by-curl"
    run_to_file(roaming, got, "curl", "-sSf", f"http://{roaming.server4}:{WEB_PORT}/file")
    assert digest(got.read_bytes()) == digest(served.read_bytes())


def test_a_static_c_client(roaming: Runs, served: Path) -> None:
    directory = roaming.field.directory
    program, source = directory / "static_download", Path(__file__).with_name("static_download.c")
    compiler = shutil.which("clang-19") or "clang"
    subprocess.run([compiler, "-static", "-O1", "-Wall", "-Werror", "-o", program, source], check=True, timeout=60)
    got = directory / "by-static-c"
    run_to_file(roaming, got, str(program), roaming.server4, str(WEB_PORT))
    _, _, body = got.read_bytes().partition(b"\r\n\r\n")
    assert digest(body) == digest(served.read_bytes())


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("go")
    program, source = directory / "go_download", Path(__file__).with_name("go_download.go")
    offline = {"CGO_ENABLED": "0", "GOCACHE": str(directory / "cache"), "GOPROXY": "off", "GOFLAGS": "-mod=mod"}
    environment = {**os.environ, **offline, "GOPATH": str(directory / "path")}
    subprocess.run(["go", "build", "-o", program, source], check=True, timeout=300, env=environment, cwd=directory)
    return program


@pytest.mark.parametrize("way", ["run", "variable", "without privilege"])
def test_a_go_client(roaming: Runs, served: Path, go_program: Path, way: str) -> None:
    got = roaming.field.directory / f"by-go-{way}"
    words = [str(go_program), f"http://{roaming.server4}:{WEB_PORT}/file"]
    if way == "run":
        run_to_file(roaming, got, *words)
    elif way == "without privilege":
        run_to_file(roaming, got, *words, unprivileged=True)
    else:
        variable = {"HTTP_PROXY": f"socks5://127.0.0.1:{PORT}", "NO_PROXY": "", "no_proxy": "", "http_proxy": ""}
        with got.open("wb") as taken:
            over_two_networks(roaming.field, roaming.lab.mobile.popen(words, env=variable, stdout=taken))
    assert digest(got.read_bytes()) == digest(served.read_bytes())


def test_openssh_git_and_rsync_by_msocks_nc(roaming: Runs, repository: Path) -> None:
    field = roaming.field
    start_sshd(field)
    shell = "ssh " + " ".join(f"'{word}'" for word in ssh_options(field))
    environment = {"MSOCKS_CONTROL": str(field.control), "GIT_SSH_COMMAND": shell}
    clone, copy, large = field.directory / "by-git-ssh", field.directory / "by-rsync", repository / "large"
    got = field.directory / "by-ssh"
    programs = (
        ["sh", "-c", f'ssh "$@" root@server cat {large} >{got}', "sh", *ssh_options(field)],
        ["git", "clone", "--quiet", f"root@server:{repository}", str(clone)],
        ["rsync", "--whole-file", "-e", shell, f"root@server:{large}", str(copy)],
    )
    for number, words in enumerate(programs):
        if number:
            field.lab.link("wifi").restore()
            field.wait_until(lambda: all(link["rtt_ms"] and link["state"] == "up" for link in links(field)))
        over_two_networks(field, field.lab.mobile.popen(words, env=environment))
    assert git(clone, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
    git(clone, "fsck", "--full")
    for path in (got, copy, clone / "large"):
        assert digest(path.read_bytes()) == digest(large.read_bytes())


def test_git_over_https(roaming: Runs, repository: Path) -> None:
    field = roaming.field
    certificate = start_git_over_https(field)
    clone = field.directory / "by-git-https"
    environment = {"GIT_SSL_CAINFO": str(certificate)}
    settings = ["-c", f"http.proxy=socks5h://127.0.0.1:{PORT}"]
    words = ["git", *settings, "clone", "--quiet", f"https://server:{GIT_PORT}/{repository.name}", str(clone)]
    over_two_networks(field, field.lab.mobile.popen(words, env=environment))
    assert git(clone, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
    git(clone, "fsck", "--full")


def test_psql(roaming: Runs) -> None:
    connection = start_postgresql(roaming.field)
    got = roaming.field.directory / "by-psql"
    query = f"copy (select n, repeat(md5(n::text), 30) from generate_series(1, {ROWS}) n) to stdout"
    run_to_file(roaming, got, "psql", "-X", "-v", "ON_ERROR_STOP=1", "-c", query, connection)
    rows = [f"{n}\t{hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest() * 30}" for n in range(1, ROWS + 1)]
    assert got.read_text().splitlines() == rows


def test_redis_cli(roaming: Runs) -> None:
    client = start_redis(roaming.field)
    value = secrets.token_hex(SIZE // 2)
    roaming.lab.server.run([*client, "-x", "set", "file"], input=value)
    got = roaming.field.directory / "by-redis-cli"
    run_to_file(roaming, got, *client, "get", "file")
    assert digest(got.read_bytes().rstrip(b"\n")) == digest(value.encode())
