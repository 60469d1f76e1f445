"""The pattern server and client: every byte is checked, straight and through a SOCKS server that is not ours."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.lab.conftest import PORT
from tests.lab.conftest import run_client as run_program

from msocks_lab import ArrivalMeter, Lab, TransferError
from msocks_lab.pattern import Pattern
from msocks_lab.pattern_client import echo
from msocks_lab.process import python_argv
from msocks_lab.socks import connect_through
from msocks_lab.transfer import TransferRequest, run_client

SOCKS_PORT = 1080


@pytest.fixture(scope="module")
def ssh_socks(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> str:
    """OpenSSH's SOCKS5 server (ssh -D) on the proxy, whose connections come out of the proxy's own sshd."""
    directory = tmp_path_factory.mktemp("ssh")
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shutil.copy(f"{key}.pub", directory / "authorized_keys")
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", "2222", "-h", str(key), "-o", "StrictModes=no"]
    sshd += ["-o", f"AuthorizedKeysFile={directory}/authorized_keys", "-o", "PidFile=none"]
    lab.proxy.popen(sshd)
    lab.proxy.wait_listening(2222)
    ssh = ["ssh", "-N", "-F", "none", "-p", "2222", "-i", str(key), "-D", f"{lab.proxy.ipv4}:{SOCKS_PORT}"]
    ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@localhost"]
    lab.proxy.popen(ssh)
    lab.proxy.wait_listening(SOCKS_PORT)
    return f"{lab.proxy.ipv4}:{SOCKS_PORT}"


@pytest.mark.parametrize("host", ["server4", "server6"])
def test_both_directions_at_once(lab: Lab, host: str):
    result = run_program(lab, "--download", "3000000", "--upload", "2000000", "--seed", "5", host=host)
    assert result["error"] == ""
    assert result["download"]["bytes"] == result["received"] == 3_000_000
    assert result["upload"]["bytes"] == 2_000_000
    assert len(result["upload"]["sha256"]) == 64


def test_arrivals_are_recorded_on_both_ends(lab: Lab, tmp_path: Path):
    records = tmp_path / "records"
    records.mkdir()
    server = lab.server.popen(python_argv("msocks_lab.pattern_server", "--port", "9001", "--records", str(records)))
    lab.server.wait_listening(9001)
    argv = python_argv("msocks_lab.pattern_client", "server", "9001", "--download", "500000", "--upload", "400000")
    lab.mobile.run([*argv, "--record", str(tmp_path / "down.json"), "--id", "x"])
    server.stop()
    down, up = ArrivalMeter.load(tmp_path / "down.json"), ArrivalMeter.load(records / "x.json")
    assert (down.total, up.total) == (500_000, 400_000)
    assert down.times == sorted(down.times)
    # One clock for all hosts: the same kernel's CLOCK_MONOTONIC.
    assert abs(up.times[0] - down.times[0]) < 1
    record = json.loads((records / "x.json").read_text())
    assert record["request"]["download"] == 500_000
    assert record["error"] == ""


@pytest.mark.parametrize("name", ["server4", "server6"])
def test_through_socks(lab: Lab, ssh_socks: str, name: str):
    before = lab.server.accepted_connections()
    target = {"server4": lab.server.ipv4, "server6": lab.server.ipv6}[name]
    for host in (name, target):
        result = run_program(lab, "--socks", ssh_socks, "--download", "500000", "--upload", "500000", host=host)
        assert result["error"] == ""
    assert lab.server.accepted_connections() == before + 2


def test_a_socks_refusal_is_told(lab: Lab, ssh_socks: str):
    argv = python_argv("msocks_lab.pattern_client", "server4", "9", "--socks", ssh_socks, "--download", "5")
    done = lab.mobile.run(argv, check=False)
    assert done.returncode == 1
    assert "TransferError" in json.loads(done.stdout)["error"]


def test_a_banner_comes_first(lab: Lab):
    server = lab.server.popen(python_argv("msocks_lab.pattern_server", "--port", "9002", "--banner", "100000"))
    lab.server.wait_listening(9002)
    argv = python_argv("msocks_lab.pattern_client", "server", "9002", "--banner", "100000", "--download", "1000")
    assert json.loads(lab.mobile.run(argv).stdout)["error"] == ""
    server.stop()


@pytest.mark.parametrize(
    ("closer", "state", "sizes"),
    [
        ("server", "FIN_WAIT2", ["--download", "1000", "--upload", "2000000"]),
        ("client", "CLOSE_WAIT", ["--download", "2000000", "--upload", "1000"]),
        ("neither", "ESTABLISHED", ["--download", "2000000", "--upload", "1000"]),
    ],
)
def test_either_side_may_close_its_half_first(lab: Lab, closer: str, state: str, sizes: list[str]):
    argv = python_argv("msocks_lab.pattern_client", "server4", str(PORT), *sizes, "--rate", "4000000")
    client = lab.mobile.popen([*argv, "--half-close", closer], stdout=subprocess.PIPE)
    seen: Counter[str] = Counter()
    while client.poll() is None:
        sockets = [entry for entry in lab.server.tcp_sockets() if entry["local_port"] == PORT]
        seen.update(entry["state"] for entry in sockets if entry["state"] not in ("LISTEN", "TIME_WAIT"))
    assert client.returncode == 0, client.communicate()
    assert seen.most_common(1)[0][0] == state


def test_the_server_may_reset(lab: Lab):
    result = run_program(lab, "--download", "2000000", "--abort-after", "500000")
    assert "ConnectionResetError" in result["error"]
    assert result["received"] <= 500_000


def test_the_servers_record_tells_how_round_trips_and_resets_ended(lab: Lab, tmp_path: Path):
    server = lab.server.popen(python_argv("msocks_lab.pattern_server", "--port", "9004", "--records", str(tmp_path)))
    lab.server.wait_listening(9004)

    def run(name: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
        argv = python_argv("msocks_lab.pattern_client", "server4", "9004", "--id", name, *options)
        result, path = json.loads(lab.mobile.run(argv, timeout=20).stdout), tmp_path / f"{name}.json"
        while not path.exists():
            time.sleep(0.01)
        return result, json.loads(path.read_text())

    result, record = run("trips", "--echo", "5", "--interval", "0.01", "--size", "100")
    assert (result["error"], result["received"]) == ("", 500)
    assert (record["error"], record["receipt"]["bytes"]) == ("", 500)
    result, record = run("reset", "--download", "20000000", "--reset-after", "500000")
    assert (result["error"], result["received"]) == ("", 500_000)
    assert "reset by peer" in record["error"] or "Broken pipe" in record["error"]
    server.stop()


def test_round_trips_are_timed(lab: Lab):
    result = run_program(lab, "--device", "lte", "--echo", "5", "--interval", "0.02")
    assert result["error"] == ""
    assert all(0.050 < seconds < 0.060 for seconds in result["round_trips"])


def test_a_record_is_written_when_the_client_is_told_to_stop(lab: Lab, tmp_path: Path):
    record = tmp_path / "record.json"
    argv = python_argv("msocks_lab.pattern_client", "server", str(PORT), "--download", "90000000", "--rate", "1000000")
    client = lab.mobile.popen([*argv, "--record", str(record), "--progress"], stdout=subprocess.PIPE)
    assert client.stdout is not None
    while json.loads(client.stdout.readline())["received"] < 100_000:
        pass
    client.terminate()
    client.communicate(timeout=5)
    assert json.loads(record.read_text())["error"] == "stopped"
    assert ArrivalMeter.load(record).total >= 100_000


class Tampering:
    """A server that answers a transfer request, and so many bytes behind it, with given bytes."""

    def __init__(self, answer: bytes, behind: int = 0) -> None:
        self.client, self._server = socket.socketpair()
        self._answer = answer
        self._behind = behind
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        heard = b""
        while b"\n" not in heard or len(heard.partition(b"\n")[2]) < self._behind:
            heard += self._server.recv(65536)
        self._server.sendall(self._answer)
        self._server.shutdown(socket.SHUT_WR)

    def __enter__(self) -> socket.socket:
        self._thread.start()
        return self.client

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self.client.close()
        self._server.close()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (bytes(100), "Byte 8 of pattern 1 is wrong"),
        (b"", "ended after 0 of 100 bytes"),
    ],
)
def test_a_wrong_download_is_seen(answer: bytes, complaint: str):
    with Tampering(answer) as connection, pytest.raises(TransferError, match=complaint):
        run_client(connection, TransferRequest(download=100), ArrivalMeter())


def trip(number: int) -> bytes:
    return number.to_bytes(8, "big") + Pattern(1).at(number * 16, 8)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (trip(0) + trip(1)[:-1] + b"?" + trip(2), "After 1 round trips came what was not sent"),
        (trip(0) + trip(2) + trip(1), "After 1 round trips came what was not sent"),
        (trip(0) + trip(1) + trip(1), "After 2 round trips came what was not sent"),
        (trip(0) + trip(1) + trip(2)[:9], "ended after 2 of 3 round trips"),
    ],
    ids=["changed", "swapped", "repeated", "cut"],
)
def test_a_wrong_round_trip_is_seen(answer: bytes, complaint: str):
    options = Namespace(echo=3, interval=0.0, size=16, seed=1, udp=False, id="", timeout=5)
    with Tampering(answer, 3 * 16) as connection, pytest.raises(TransferError, match=complaint):
        echo(connection, options, ArrivalMeter())


def test_an_upload_that_the_server_has_not_got_is_seen():
    receipt = b'{"bytes": 9, "sha256": "00", "error": ""}\n'
    with Tampering(receipt) as connection, pytest.raises(TransferError, match="got 9 of 10 bytes"):
        run_client(connection, TransferRequest(upload=10), ArrivalMeter())


def test_a_tail_too_many_is_seen():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    answer = b'{"bytes": 0, "sha256": "' + empty.encode() + b'", "error": ""}\nx'
    with Tampering(answer) as connection, pytest.raises(TransferError, match="more than was agreed"):
        run_client(connection, TransferRequest(), ArrivalMeter())


def test_socks_speaks_the_bytes_of_the_standard():
    """RFC 1928 with the user and password of RFC 1929, a name as the destination."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        heard = []

        def serve() -> None:
            for answer in (b"\x05\x02", b"\x01\x00", b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"):
                heard.append(theirs.recv(100))
                theirs.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        bound = connect_through(ours, "example.org", 443, ("alice", "secret"))
        thread.join()
    assert bound == ("127.0.0.1", 1080)
    assert heard == [b"\x05\x01\x02", b"\x01\x05alice\x06secret", b"\x05\x01\x00\x03\x0bexample.org\x01\xbb"]


def test_the_server_survives_nonsense(lab: Lab):
    process = lab.server.popen(python_argv("msocks_lab.pattern_server", "--port", "9003"))
    lab.server.wait_listening(9003)
    script = "import socket; s=socket.create_connection(('server',9003)); s.send(b'GET /\\n'); s.recv(9)"
    lab.mobile.run(["python3", "-c", script])
    assert process.poll() is None
    assert "Not a transfer request" in process.output()
    process.stop()
