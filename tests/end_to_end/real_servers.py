"""Ordinary servers on the lab's server host, as Debian has them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from demo.world import NGINX, SSHD
from tests.end_to_end.conftest import MSOCKS, Field

from msocks_lab import Host
from msocks_lab.certificate import self_signed

WEB_PORT, SSH_PORT, DATABASE_PORT, REDIS_PORT, GIT_PORT = 8080, 2222, 5432, 6379, 8443
SOME_DATABASE_USER = "nobody"  # PostgreSQL refuses to run as root


def start_nginx(field: Field, content: bytes) -> Path:
    """Serves `content` as /file; returns where that is."""
    directory = field.directory
    file = directory / "www" / "file"
    file.parent.mkdir()
    file.write_bytes(content)
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory, port=WEB_PORT))
    field.lab.server.popen([shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(directory / "nginx.conf")])
    field.lab.server.wait_listening(WEB_PORT)
    return file


def start_sshd(field: Field, host: Host | None = None) -> None:
    """On the server host, or another. Root may come in, with the key that `ssh_options` gives."""
    host = host or field.lab.server
    directory = field.directory
    for name in ("host_key", "user_key"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(keygen, check=True, timeout=20)
    (directory / "sshd.conf").write_text(SSHD.format(directory=directory, port=SSH_PORT))
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start without it
    host.popen([shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "sshd.conf")])
    host.wait_listening(SSH_PORT)


def ssh_options(field: Field) -> list[str]:
    """Options of ssh that go to that sshd by `msocks nc`."""
    key = str(field.directory / "user_key")
    values = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", f"ProxyCommand={MSOCKS} nc %h %p"]
    return ["-i", key, "-p", str(SSH_PORT), *(word for value in values for word in ("-o", value))]


def start_postgresql(field: Field) -> str:
    """An empty one; returns how a client names it."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    data = field.directory / "database"
    data.mkdir()
    shutil.chown(data, SOME_DATABASE_USER)
    server = field.lab.server
    server.run(
        [programs / "initdb", "-D", data, "--auth", "trust", "--no-sync", "-U", "someone"],
        user=SOME_DATABASE_USER, cwd="/",
    )  # fmt: skip
    (data / "pg_hba.conf").write_text("host all all all trust\n")
    options = ["-c", "listen_addresses=*", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    server.popen(
        [programs / "postgres", "-D", data, "-p", str(DATABASE_PORT), *options], user=SOME_DATABASE_USER, cwd="/"
    )
    server.wait_listening(DATABASE_PORT)
    return f"host={server.ipv4} port={DATABASE_PORT} user=someone dbname=postgres sslmode=disable"


def start_redis(field: Field) -> list[str]:
    """An empty one, in memory alone; returns the client's command without what it shall do."""
    server = field.lab.server
    options = ["--save", "", "--appendonly", "no", "--dir", str(field.directory)]
    server.popen(["redis-server", "--port", str(REDIS_PORT), "--bind", server.ipv4, "--protected-mode", "no", *options])
    server.wait_listening(REDIS_PORT)
    return ["redis-cli", "-h", server.ipv4, "-p", str(REDIS_PORT)]


def start_git_over_https(field: Field) -> Path:
    """Git's own server program behind TLS; returns the certificate that a client has to trust."""
    certificate, key = self_signed(field.directory, "server")
    script = str(Path(__file__).with_name("git_web_server.py"))
    words = [sys.executable, script, str(GIT_PORT), str(field.directory), str(certificate), str(key)]
    field.lab.server.popen(words)
    field.lab.server.wait_listening(GIT_PORT)
    return certificate
