"""The demo's hosts and real programs: nginx and sshd on the server, the proxy, the agent on the mobile host."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msocks_lab import Lab, LabConfig, LabProcess, LinkConfig

MSOCKS = str(Path(sys.executable).with_name("msocks"))
WEB_PORT, SSH_PORT, PROXY_PORT, LOCAL_PORT = 8080, 2222, 1080, 1080
WIFI = LinkConfig("wifi", rtt_ms=5, rate_mbit=50, queue_ms=100, ipv6=False, nat=True)
LTE = LinkConfig("lte", rtt_ms=50, rate_mbit=20, queue_ms=100, ipv4=False)

NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 64; }}
http {{
    log_format plain '$request_method $uri range=$http_range status=$status bytes=$body_bytes_sent';
    access_log {directory}/nginx-access.log plain;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    server {{ listen {port}; listen [::]:{port}; root {directory}/www; sendfile on; }}
}}
"""

SSHD = """\
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/user_key.pub
PidFile {directory}/sshd.pid
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""


@dataclass(slots=True)
class World:
    """Everything that runs."""

    lab: Lab
    directory: Path
    digest: str  # SHA-256 of the file that nginx serves
    control: Path
    proxy_argv: list[str]
    proxy: LabProcess

    def kill_proxy(self) -> None:
        """`kill -9`."""
        self.proxy.kill()
        self.proxy.wait()

    def start_proxy(self) -> None:
        """Another one, on the same state directory."""
        self.proxy = _start(self.lab.proxy.popen(self.proxy_argv, stdout=subprocess.PIPE))

    def msocks(self, *arguments: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
        """Run a verb of `msocks` on the mobile host; what it says on failure is in the result."""
        environment = {"MSOCKS_CONTROL": str(self.control)}
        return self.lab.mobile.run([MSOCKS, *arguments], env=environment, check=False, timeout=timeout)

    def flows(self) -> list[dict[str, Any]]:
        """The agent's flow table."""
        flows: list[dict[str, Any]] = json.loads(self.msocks("flows", "--json").stdout)["flows"]
        return flows

    def curl(self) -> LabProcess:
        """Real curl, through the agent, downloading the file to its standard output."""
        proxy = f"socks5h://127.0.0.1:{LOCAL_PORT}"
        url = f"http://server:{WEB_PORT}/file"
        argv = ["curl", "--silent", "--show-error", "--fail", "--proxy", proxy, url]
        return self.lab.mobile.popen(argv, stdout=subprocess.PIPE)

    def ssh(self) -> LabProcess:
        """Real OpenSSH, through `msocks nc`, with `cat` at the other end: what is typed comes back."""
        options = {
            "ProxyCommand": f"{MSOCKS} nc %h %p",
            "UserKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "no",
            "LogLevel": "ERROR",
            "IdentitiesOnly": "yes",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        key = str(self.directory / "user_key")
        argv = ["ssh", "-F", "none", "-T", "-i", key, "-p", str(SSH_PORT), *flags, "root@server", "cat"]
        environment = {"MSOCKS_CONTROL": str(self.control)}
        return self.lab.mobile.popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@contextlib.contextmanager
def build(file_bytes: int, datapath: str) -> Iterator[World]:
    """Make the hosts and start the programs; everything is gone when the block ends, whatever happens.

    `datapath` is what `msocks proxy --datapath` is told.
    """
    with Lab(LabConfig([WIFI, LTE])) as lab:
        directory = lab.directory
        digest = _write_file(directory / "www" / "file", file_bytes)
        _start_servers(lab, directory)
        state = directory / "proxy-state"
        addresses = [f"{lab.proxy.ipv4}:{PROXY_PORT}", f"[{lab.proxy.ipv6}]:{PROXY_PORT}"]
        link = lab.proxy.run(
            [MSOCKS, "user", "add", "demo", "--state", str(state), *_each("--address", addresses)]
        ).stdout
        access = directory / "access"
        access.write_text(link)
        access.chmod(0o600)
        allowed = [f"{address}/{128 if ':' in address else 32}" for address in lab.server.addresses]
        listen = _each("--listen", [f"0.0.0.0:{PROXY_PORT}", f"[::]:{PROXY_PORT}"])
        proxy = [MSOCKS, "proxy", *listen, "--state", str(state), *_each("--allow", allowed), "--datapath", datapath]
        running = _start(lab.proxy.popen(proxy, stdout=subprocess.PIPE))
        control = directory / "agent.sock"
        agent = [MSOCKS, "agent", "--access-file", str(access), "--listen", f"127.0.0.1:{LOCAL_PORT}"]
        agent += ["--control", str(control), "--link", "wifi", "--link", "lte"]
        _start(lab.mobile.popen(agent, stdout=subprocess.PIPE, unprivileged=True))
        yield World(lab, directory, digest, control, proxy, running)


def _each(option: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _start(process: LabProcess) -> LabProcess:
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if line != "ready":
        time.sleep(0.2)
        raise RuntimeError(f"{process.host}: msocks did not start:\n{process.tail()}")
    return process


def _write_file(path: Path, size: int) -> str:
    path.parent.mkdir()
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while size:
            block = secrets.token_bytes(min(size, 1 << 20))
            digest.update(block)
            file.write(block)
            size -= len(block)
    return digest.hexdigest()


def _start_servers(lab: Lab, directory: Path) -> None:
    nginx = directory / "nginx.conf"
    nginx.write_text(NGINX.format(directory=directory, port=WEB_PORT))
    lab.server.popen([shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(nginx)])
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True, timeout=20
        )
    sshd = directory / "sshd.conf"
    sshd.write_text(SSHD.format(directory=directory, port=SSH_PORT))
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start without it
    lab.server.popen([shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(sshd)])
    lab.server.wait_listening(WEB_PORT)
    lab.server.wait_listening(SSH_PORT)
