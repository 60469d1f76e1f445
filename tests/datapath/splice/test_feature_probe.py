"""What a host lacks for the splice is found, named, and has a remedy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.own_network import own_bpffs, own_network

from msocks.datapath.splice.feature_probe import Check, is_available, probe
from msocks.datapath.splice.ports import PortRange
from msocks.protocol.leg import DatapathReason

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
DOCTOR = [sys.executable, "-m", "msocks", "doctor"]
SETPRIV = shutil.which("setpriv") or ""
NEEDED = ("bpf", "perfmon", "net_admin", "net_raw")


def doctor(*capabilities: str, environment: dict[str, str] | None = None) -> tuple[int, dict[str, dict[str, object]]]:
    """The exit status and the checks by name of root with these capabilities alone, in a network of its own."""
    allowed = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    command = [SETPRIV, f"--bounding-set={allowed}", "--inh-caps=-all", *DOCTOR, "--json"]
    with own_network(), own_bpffs():
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=os.environ | (environment or {}),
        )
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    assert answer["splice"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in answer["checks"]}


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_host_that_has_everything():
    with own_network(), own_bpffs() as pins:
        before = set(pins.iterdir())
        checks = probe()
        assert [(check.name, check.ok, check.remedy) for check in checks] == [(name, True, "") for name in NAMES]
        assert is_available(checks)
        assert set(pins.iterdir()) == before


def test_four_capabilities_are_enough():
    status, checks = doctor(*NEEDED)
    assert status == 0, checks


@pytest.mark.parametrize("missing", NEEDED)
def test_each_of_the_four_is_needed(missing: str):
    status, checks = doctor(*(name for name in NEEDED if name != missing))
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


def test_without_nft():
    status, checks = doctor(*NEEDED, environment={"PATH": "/nonexistent"})
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
