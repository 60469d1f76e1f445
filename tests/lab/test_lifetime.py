"""A lab leaves nothing behind, however it ends, and labs do not meet."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import bpf_maps
from tests.lab.conftest import lost, start_pattern_server

from msocks_lab import CutMode, Lab, LabConfig, LinkConfig, ProcessFailed, SetupError, launch
from msocks_lab.wire import runtime_root

SMALL = LabConfig([LinkConfig("wifi", rtt_ms=1, rate_mbit=100, nat=True), LinkConfig("fat", fat=True)])

# Builds a lab with a daemon in it that has left its parent, says so, and waits.
OWNER = """
import sys, time
from msocks_lab import Lab, LabConfig, LinkConfig
with Lab(LabConfig([LinkConfig("wifi", rtt_ms=1)]), name=sys.argv[1]) as lab:
    lab.mobile.popen(["sleep", "1000.25"])
    lab.server.run(["sh", "-c", "setsid sleep 1000.25 </dev/null >/dev/null 2>&1 &"])
    print(lab.supervisor_pid, flush=True)
    time.sleep(1000)
"""


def link_target(path: Path) -> str:
    return str(path.readlink())


def processes_in(pid_namespace: str) -> list[int]:
    """The processes of this machine that live in a PID namespace."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and link_target(entry / "ns/pid") == pid_namespace:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def eventually(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def network_of(lab: Lab, host: str) -> str:
    return link_target(Path(f"/proc/{lab.supervisor_pid}/fd/{lab.namespaces(host)['net']}"))


def interfaces() -> list[str]:
    return sorted(item["ifname"] for item in json.loads(subprocess.check_output(["ip", "-json", "link"])))


def network_namespaces() -> set[str]:
    """Those that any process of this machine is in, or holds by a descriptor."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            found.add(link_target(entry / "ns/net"))
            found |= {target for fd in (entry / "fd").iterdir() if (target := link_target(fd)).startswith("net:[")}
        except OSError:
            continue
    return found


def test_nothing_is_left_after_the_block():
    before = interfaces(), Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text()
    with Lab(SMALL) as lab:
        lab.mobile.popen(["sleep", "1000"])
        namespace = link_target(Path(f"/proc/{lab.supervisor_pid}/ns/pid"))
        networks = {network_of(lab, host) for host in lab.hosts}
        assert len(networks) == len(lab.hosts) == 6
        assert networks <= network_namespaces()
        assert len(processes_in(namespace)) >= 3
        assert launch.alive(lab.name)
        assert launch.is_tied(lab.name)
    assert processes_in(namespace) == []
    assert not networks & network_namespaces()
    assert not (runtime_root() / lab.name).exists()
    assert (interfaces(), Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text()) == before


@pytest.mark.parametrize("victim", ["owner", "supervisor"])
def test_nothing_is_left_after_sigkill(victim: str, tmp_path: Path):
    name = f"crash-{victim}-{os.getpid()}"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert owner.stdout is not None
    supervisor = int(owner.stdout.readline())
    namespace = link_target(Path(f"/proc/{supervisor}/ns/pid"))
    inside = processes_in(namespace)
    assert len(inside) == 4, "supervisor, emulator, the child and the daemon"
    networks = {link_target(fd) for fd in Path(f"/proc/{supervisor}/fd").iterdir()}
    networks = {target for target in networks if target.startswith("net:")}
    assert len(networks) == 5
    os.kill({"owner": owner.pid, "supervisor": supervisor}[victim], signal.SIGKILL)
    if victim == "owner":
        owner.wait()
    # Process 1 of a PID namespace stays until the children of the owner in it have been waited for.
    others = [pid for pid in inside if pid != supervisor]
    assert eventually(lambda: all(is_gone(pid) for pid in others))
    assert eventually(lambda: not networks & network_namespaces())
    owner.kill()
    owner.communicate()
    # It is up to the machine's process 1 when the last of them are waited for.
    assert eventually(lambda: all(is_gone(pid) for pid in processes_in(namespace)), 15)
    assert name not in launch.running()
    assert not (runtime_root() / name).exists()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_two_labs_side_by_side_do_not_meet():
    config = LabConfig([LinkConfig("wifi", rtt_ms=1, rate_mbit=100)])
    with Lab(config) as one, Lab(config) as other:
        for lab in (one, other):
            start_pattern_server(lab)
        one.link("wifi").cut(CutMode.CARRIER)
        assert lost(other, "wifi") == 0
        assert other.link("wifi").describe()["state"] == "up"
        before = other.link("wifi").counters()
        one.link("wifi").restore()
        assert lost(one, "wifi") == 0
        assert other.link("wifi").counters().since(before).packets_up < 5
        visible = other.mobile.run(["ps", "ax", "-o", "args"]).stdout
        assert visible.count("msocks_lab.supervisor") == 1


def test_a_name_is_taken_once():
    with Lab(LabConfig(), name="taken"):
        with pytest.raises(SetupError, match="runs already"):
            Lab(LabConfig(), name="taken").__enter__()
        assert "taken" in launch.running()
    with Lab(LabConfig(), name="taken"):
        pass
    assert "taken" not in launch.running()


def test_a_lab_that_cannot_be_built_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SetupError, match="cannot name a lab"):
        Lab(LabConfig(), name="a/b").__enter__()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SetupError, match="util-linux"):
        Lab(LabConfig()).__enter__()


def test_a_failing_program_tells_its_output():
    with Lab(LabConfig()) as lab:
        with pytest.raises(ProcessFailed, match=r"ended with 3:\nsad"):
            lab.mobile.run(["sh", "-c", "echo sad >&2; exit 3"])
        with pytest.raises(ProcessFailed, match=r"longer than 0.2 s"):
            lab.mobile.run(["sleep", "10"], timeout=0.2)
        with pytest.raises(ProcessFailed, match="Nothing listens on tcp port 9"):
            lab.mobile.wait_listening(9, timeout=0.05)


def test_logs_are_kept_and_shown_when_the_block_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with contextlib.suppress(ZeroDivisionError), Lab(LabConfig(), directory=tmp_path / "logs") as lab:
        lab.server.popen(["sh", "-c", "echo what went wrong"]).wait()
        raise ZeroDivisionError
    assert "what went wrong" in capsys.readouterr().err
    assert (tmp_path / "logs/001-server-sh.log").read_text() == "what went wrong\n"


def test_programs_may_run_without_privilege():
    script = "id -u; grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status; cat /proc/self/status | grep NoNewPrivs"
    none = "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n"
    with Lab(LabConfig()) as lab:
        assert lab.mobile.run(["sh", "-c", script], user="nobody", cwd="/").stdout == "65534\n" + none
        assert lab.mobile.run(["sh", "-c", script], unprivileged=True).stdout == "0\n" + none
        with pytest.raises(SetupError, match="no user 'nessie'"):
            lab.mobile.run(["true"], user="nessie")


def test_hosts_see_their_own_world():
    with Lab(SMALL) as lab:
        assert sorted(lab.mobile.run(["ls", "/sys/class/net"]).stdout.split()) == ["fat", "lo", "wifi"]
        assert lab.server.run(["getent", "ahostsv4", "proxy"]).stdout.split()[0] == lab.proxy.ipv4
        assert lab.server.run(["getent", "ahostsv6", "proxy"]).stdout.split()[0] == lab.proxy.ipv6
        lab.add_name("twin", "192.0.2.77", "2001:db8::77")
        assert lab.mobile.run(["getent", "ahostsv4", "twin"]).stdout.split()[0] == "192.0.2.77"
        assert lab.proxy.run(["getent", "ahostsv6", "twin"]).stdout.split()[0] == "2001:db8::77"
        began = time.monotonic()
        assert lab.mobile.run(["getent", "hosts", "no.such.name"], check=False).returncode == 2
        assert time.monotonic() - began < 2
        for host in lab.hosts:
            chosen = lab.host(host).run(["cat", "/proc/sys/net/ipv4/tcp_congestion_control"]).stdout
            assert chosen == "cubic\n"


def pin(lab: Lab, host: str, path: Path) -> int:
    """A program on the host pins a map and ends; the map's id."""
    return int(lab.host(host).run([sys.executable, bpf_maps.__file__, path]).stdout)


def test_pins_outlive_programs_and_end_with_the_lab():
    path = Path("/sys/fs/bpf/kept")
    with Lab(LabConfig()) as lab, Lab(LabConfig()) as other:
        here = pin(lab, "proxy", path)
        assert "kept" in lab.proxy.run(["ls", path.parent]).stdout.split()
        assert "kept" not in lab.server.run(["ls", path.parent]).stdout.split()
        assert "kept" not in other.proxy.run(["ls", path.parent]).stdout.split()
        assert not path.exists()
        there = pin(other, "proxy", path)  # the same name, and nobody minds
        assert bpf_maps.map_exists(here)
        assert bpf_maps.map_exists(there)
        lab.close()
        assert eventually(lambda: not bpf_maps.map_exists(here))
        assert bpf_maps.map_exists(there)
        os.kill(other.supervisor_pid, signal.SIGKILL)
        assert eventually(lambda: not bpf_maps.map_exists(there))


def test_programs_of_a_host_share_its_namespaces_and_write_outside(tmp_path: Path):
    def namespaces(host: str) -> tuple[str, str]:
        done = lab.host(host).run(["readlink", "/proc/self/ns/net", "/proc/self/ns/mnt"])
        net, mnt = done.stdout.split()
        return net, mnt

    with Lab(LabConfig()) as lab:
        assert namespaces("proxy") == namespaces("proxy")
        outside = link_target(Path("/proc/self/ns/net")), link_target(Path("/proc/self/ns/mnt"))
        for kind in zip(namespaces("proxy"), namespaces("server"), outside, strict=True):
            assert len(set(kind)) == 3
        lab.proxy.run(["sh", "-c", f"echo from the proxy > {tmp_path}/file"])
        assert lab.server.run(["cat", tmp_path / "file"]).stdout == "from the proxy\n"
    assert (tmp_path / "file").read_text() == "from the proxy\n"


def test_a_program_may_be_started_from_another_thread_and_live_on():
    """What dies with the thread that forked (PR_SET_PDEATHSIG) is not what holds a lab together."""
    import threading

    with Lab(LabConfig()) as lab:
        started = []
        thread = threading.Thread(target=lambda: started.append(lab.mobile.popen(["sleep", "1000"])))
        thread.start()
        thread.join()
        time.sleep(0.1)
        assert started[0].poll() is None


def test_answers_may_be_long():
    script = (
        "import socket, time; s = [socket.socket() for _ in range(3000)]; [x.listen() for x in s]; time.sleep(1000)"
    )
    with Lab(LabConfig()) as lab:
        lab.server.popen(["sh", "-c", f"ulimit -n 4000; exec python3 -c '{script}'"])
        assert eventually(lambda: len(lab.server.tcp_sockets()) == 3000)
