"""What a host lacks for the splice is found, named, and has a remedy."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import socks
from tests.own_network import own_bpffs, own_network

from msocks.datapath.splice.feature_probe import Check, is_available, probe
from msocks.datapath.splice.ports import PortRange
from msocks.protocol.leg import DatapathReason
from msocks.store.running_proxy import sessions

NAMES = [
    "build",
    "privilege",
    "BPF file system",
    "BPF programs",
    "hooks",
    "nftables",
    "TCP repair",
    "raw sockets",
    "ports",
]
MSOCKS = [sys.executable, "-m", "msocks"]
DOCTOR = [*MSOCKS, "doctor"]
SETPRIV = shutil.which("setpriv") or ""
NEEDED = ("bpf", "perfmon", "net_admin", "net_raw")


def with_capabilities(*capabilities: str) -> list[str]:
    """Run what follows as root with these capabilities alone. Files of others are others' files then."""
    allowed = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return [SETPRIV, f"--bounding-set={allowed}", "--inh-caps=-all"]


def doctor(*capabilities: str, **environment: str) -> tuple[int, dict[str, dict[str, object]]]:
    """The exit status and the checks by name, in a network of its own."""
    with own_network(), own_bpffs():
        return doctor_here(*capabilities, **environment)


def doctor_here(*capabilities: str, **environment: str) -> tuple[int, dict[str, dict[str, object]]]:
    done = subprocess.run(
        [*with_capabilities(*capabilities), *DOCTOR, "--json"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | environment,
    )
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    assert answer["splice"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in answer["checks"]}


def run_proxy(
    datapath: str | None,
    state: Path,
    *capabilities: str,
    meanwhile: Callable[[], None] = lambda: None,
    commands: str = "",
) -> tuple[int, str]:
    """Start an open proxy, and stop it when it has been ready: its exit status, and what it wrote to standard error.

    `commands` of iproute2 are run before, in its network.
    """
    verb = ["proxy", "--listen", "127.0.0.1:1080", "--state", str(state)]
    verb += ["--datapath", datapath] if datapath else []
    command = [*with_capabilities(*capabilities), *MSOCKS, *verb, "--open", "--allow", "127.0.0.0/8"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_network()).ip(commands)
        stack.enter_context(own_bpffs())
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        assert process.stdout is not None
        try:
            if process.stdout.readline() == "ready\n":
                meanwhile()
        finally:
            process.terminate()
        _, said = process.communicate(timeout=30)
    return process.returncode, said


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_host_that_has_everything():
    with own_network(), own_bpffs() as pins:
        before = set(pins.iterdir())
        checks = probe()
        assert [(check.name, check.ok, check.remedy) for check in checks] == [(name, True, "") for name in NAMES]
        assert is_available(checks)
        assert set(pins.iterdir()) == before


def test_four_capabilities_are_enough(tmp_path: Path):
    status, checks = doctor(*NEEDED)
    assert status == 0, checks
    status, said = run_proxy("splice", tmp_path, *NEEDED)
    assert status == 0, said
    assert "relaying" not in said


def test_left_to_itself_a_proxy_splices_where_it_can(tmp_path: Path):
    attached: list[Path] = []

    def look() -> None:
        attached.extend(Path("/sys/fs/bpf/msocks").glob("*/links/*"))

    network = "link add uplink type veth peer name far"
    status, said = run_proxy(None, tmp_path, *NEEDED, meanwhile=look, commands=network)
    assert status == 0, said
    assert {path.name.partition("-")[2] for path in attached} == {"ingress", "egress"}
    assert "relaying" not in said


@pytest.mark.parametrize("missing", NEEDED)
def test_each_of_the_four_is_needed(missing: str, tmp_path: Path):
    others = [name for name in NEEDED if name != missing]
    # The kernel itself refuses: a proxy does not count capabilities.
    status, said = run_proxy("splice", tmp_path, *others)
    assert status == 4, said
    assert f"CAP_{missing.upper()}" in said
    status, checks = doctor(*others)
    assert status == 1
    assert checks["privilege"] == {
        "name": "privilege",
        "ok": False,
        "finding": f"CAP_{missing.upper()} is missing",
        "remedy": "run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW "
        "(systemd: AmbientCapabilities=)",
        "reason": "no-privilege",
    }
    assert checks["BPF programs"]["ok"] is None
    assert checks["BPF programs"]["finding"] == "not tried: first see to the privilege"


def test_without_any_privilege_everything_that_needs_it_says_so():
    _, checks = doctor()
    assert {name for name, check in checks.items() if check["ok"] is False} == {
        "privilege",
        "nftables",
        "TCP repair",
        "raw sockets",
    }
    assert all(bool(check["remedy"]) is (check["ok"] is False) for check in checks.values())


def test_a_proxy_without_privilege_says_why_it_relays_in_one_short_line_and_of_each_session(tmp_path: Path):
    reasons: list[str] = []

    def open_session() -> None:
        with socket.create_server(("127.0.0.1", 7000)):
            client = socks.socksocket()
            client.set_proxy(socks.SOCKS5, "127.0.0.1", 1080)
            with client:
                client.connect(("127.0.0.1", 7000))
                reasons.extend(session["datapath_reason"] for session in sessions(tmp_path))

    status, said = run_proxy("auto", tmp_path, meanwhile=open_session)
    assert status == 0, said
    assert reasons == ["no privilege"]
    (line,) = [line for line in said.splitlines() if "relaying" in line]
    assert "CAP_NET_ADMIN and CAP_NET_RAW and CAP_PERFMON and CAP_BPF are missing; run as root, or with CAP_BPF" in line
    assert len(line) < 400


def test_without_nft():
    status, checks = doctor(*NEEDED, PATH="/nonexistent")
    assert status == 1
    assert checks["nftables"]["finding"] == "the program nft is missing"


def test_without_a_bpf_file_system():
    with own_network(), own_bpffs() as pins:
        subprocess.run(["umount", pins], check=True, timeout=10)
        # What a mount namespace shares with nobody may be there below: the directory itself.
        subprocess.run(["mount", "-t", "tmpfs", "none", pins], check=True, timeout=10)
        check = by_name(probe())["BPF file system"]
        assert (check.ok, check.reason) == (False, DatapathReason.NO_KERNEL_SUPPORT)
        assert "mount -t bpf bpf /sys/fs/bpf" in check.remedy


def test_a_directory_that_the_service_manager_has_made():
    """As systemd/msocks-proxy.service does. The host's root is somebody else here, and this root the service's user."""
    with own_network(), own_bpffs() as pins:
        os.chown(pins, 12345, 12345)
        pins.chmod(0o711)
        status, checks = doctor_here(*NEEDED)
        assert (status, checks["BPF file system"]["finding"]) == (1, "/sys/fs/bpf may not be written to")
        assert "install -d -o USER -m 0700 /sys/fs/bpf/msocks" in str(checks["BPF file system"]["remedy"])
        (pins / "msocks").mkdir(0o700)
        status, checks = doctor_here(*NEEDED)
        assert status == 0, checks
        os.chown(pins / "msocks", 12345, 12345)
        _, checks = doctor_here(*NEEDED)
        assert checks["BPF file system"]["finding"] == "/sys/fs/bpf/msocks may not be written to"


def test_a_libbpf_that_cannot_be_loaded(tmp_path: Path):
    (tmp_path / "libbpf.so.1").touch()
    status, checks = doctor(*NEEDED, LD_LIBRARY_PATH=str(tmp_path))
    assert status == 1
    assert str(checks["build"]["finding"]).startswith("the splice's extension module cannot be loaded: ")
    assert checks["build"]["remedy"] == "install libbpf 1.1 or newer; on Debian: apt-get install libbpf1"
    assert checks["build"]["reason"] == "no-kernel-support"
    assert checks["BPF programs"]["finding"] == "not tried: first see to the build"


def test_ports_that_anybody_may_get_are_reserved_later_and_who_listens_there_is_named():
    with own_network():
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("20000 30000")
        ports = PortRange(25000, 25010)
        with socket.socket() as listener:
            listener.bind(("0.0.0.0", 25003))
            listener.listen()
            finding = by_name(probe(ports))["ports"].finding
        assert finding.startswith("25000-25010, will be reserved; but the splice will cut off who listens on 25003")
        assert Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text() == "\n"


def test_a_build_without_the_splice_is_named(tmp_path: Path):
    """The package as a pure-Python wheel has it."""
    source = Path(__file__).parents[3] / "src" / "msocks"
    copy = tmp_path / "msocks"
    subprocess.run(["cp", "-r", source, copy], check=True, timeout=30)
    for built in ("_libbpf.abi3.so", "_splice.bpf.o"):
        (copy / "datapath" / "splice" / built).unlink()
    done = subprocess.run(DOCTOR, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    first, second, *_, last = done.stdout.splitlines()
    assert first == "MISSING  build: this msocks was built without the splice (MSOCKS_WITHOUT_SPLICE)"
    assert second.startswith("         install one that was built with it")
    assert last == "The splice cannot be had: a proxy relays."
    hooks = [sys.executable, "-c", "from msocks.interception.hooks import Hooks; Hooks(0, udp=False)"]
    done = subprocess.run(hooks, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert "CannotIntercept: this msocks was built without its eBPF parts; " in done.stderr
