"""`msocks transparent` on the mobile host, and a host behind it.

The root of the control groups is, for the processes of these tests, a group of the tests' own: no process of the
machine comes near the hooks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import IPRoute
from tests.end_to_end.conftest import MSOCKS
from tests.end_to_end.ends import entered
from tests.end_to_end.run_fixtures import PEER_PORT, Runs, runs_in_lab

from msocks_lab import LabProcess

_CGROUPS = Path("/sys/fs/cgroup/unified")
LAN4, LAN6 = "192.168.77.2", "2001:db8:77::2"
_LAN = """
ip addr add 192.168.77.1/24 dev lan0; ip addr add 2001:db8:77::1/64 dev lan0 nodad; ip link set lan0 up
nsenter {net} ip -batch - <<EOF
link set lo up
link set eth0 up
addr add 192.168.77.2/24 dev eth0
addr add 2001:db8:77::2/64 dev eth0 nodad
route add default via 192.168.77.1
route add ::/0 via 2001:db8:77::1
EOF
nft -f - <<EOF
table inet lan {{ chain out {{ type nat hook postrouting priority srcnat; oifname {{ "wifi", "lte" }} masquerade; }}; }}
EOF
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
"""
_STATE = "nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all"


class Whole:
    """A lab whose mobile host is a whole computer, and a router for another one."""

    def __init__(self, runs: Runs, group: Path) -> None:
        self.runs, self.field, self.lab, self.group = runs, runs.field, runs.lab, group
        self._running: list[LabProcess] = []
        self._behind: list[str] | None = None

    def argv(self, *argv: str) -> list[str]:
        """A command line of the computer: in its group, and so of all that the hooks see."""
        return ["sh", "-c", f'echo 0 >{self.group}/cgroup.procs && exec "$@"', "sh", *argv]

    def start(self, *options: str, control: Path | None = None) -> LabProcess:
        """``msocks transparent`` with these options, from the moment when it takes connections."""
        process = self.start_somehow(*options, control=control)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == b"ready\n", process.tail()
        return process

    def start_somehow(self, *options: str, control: Path | None = None, unprivileged: bool = False) -> LabProcess:
        verb = [MSOCKS, "transparent", *options, "--control", str(control or self.field.control)]
        rooted = ["unshare", "-m", "sh", "-c", f'mount --bind {self.group} {_CGROUPS} && exec "$@"', "sh"]
        argv = verb if unprivileged else self.argv(*rooted, *verb)
        process = self.lab.mobile.popen(argv, stdout=subprocess.PIPE, unprivileged=unprivileged)
        self._running.append(process)
        return process

    def stop(self) -> None:
        """As new for the next test."""
        for process in self._running:
            process.stop()
            process.end()
        self._running.clear()

    def contain(self, process: LabProcess) -> None:
        """Have a process in the group: what it opens from now on is looked at by the hooks."""
        (self.group / "cgroup.procs").write_text(str(process.pid))

    def curl(self, server: str, *options: str, prefix: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        """An unmodified program asks the server who it is; by default on the mobile host."""
        host = f"[{server}]" if ":" in server else server
        words = ["curl", "-sS", "-m", "10", *options, f"http://{host}:{PEER_PORT}/"]
        return self.lab.mobile.run(self.argv(*words) if prefix is None else [*prefix, *words], check=False)

    def seen(self, server: str, *options: str, prefix: list[str] | None = None) -> str:
        """The address that the server saw."""
        done = self.curl(server, *options, prefix=prefix)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    def state(self) -> str:
        """Rules and routes of the mobile host."""
        return self.lab.mobile.run(["sh", "-ec", _STATE]).stdout

    def behind(self) -> list[str]:
        """The command line that runs what follows on the host behind lan0, which is made when it is asked for first."""
        if self._behind is None:
            mobile = self.lab.mobile
            hold = mobile.popen(["unshare", "-n", "sh", "-c", "echo $$; exec sleep 1000"], stdout=subprocess.PIPE)
            assert hold.stdout is not None
            net = f"--net=/proc/{int(hold.stdout.readline())}/ns/net"
            hold.stdout.close()
            with entered(self.lab, "mobile"), IPRoute() as netlink:
                netlink.link("add", ifname="lan0", kind="veth", peer={"ifname": "eth0", "net_ns_pid": hold.pid})
            mobile.run(["sh", "-ec", _LAN.format(net=net)])
            self._behind = ["nsenter", net]
        return self._behind


@contextlib.contextmanager
def whole_in_lab() -> Iterator[Whole]:
    group = _CGROUPS / f"msocks-test-{os.getpid()}"
    group.mkdir()
    try:
        with runs_in_lab() as runs:
            whole = Whole(runs, group)
            assert runs.field.agent is not None
            whole.contain(runs.field.agent)
            yield whole
            whole.stop()
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text():
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.02)
        group.rmdir()
