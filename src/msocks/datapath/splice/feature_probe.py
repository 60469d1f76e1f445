"""What the splice needs of this host, asked piece by piece: what is there, what is missing, and what to do about it.

Nothing is changed on the host, and no packet meets the programs that are loaded to see whether the kernel takes them.
This module can be imported where the splice's compiled parts cannot.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msocks.datapath.splice.ports import PortRange, listeners_within, may_reserve, needed_reservation
from msocks.errors import MsocksError
from msocks.protocol.leg import DatapathReason

BPF_FILE_SYSTEM = Path("/sys/fs/bpf")

# Bits of linux/capability.h.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_PERFMON": 38, "CAP_BPF": 39}
_CAP_SYS_ADMIN = 21  # has CAP_BPF and CAP_PERFMON in it, as before Linux 5.8
_INSTEAD_OF_ROOT = "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW (systemd: AmbientCapabilities=)"
_AS_ROOT = f"run as root, or with {_INSTEAD_OF_ROOT}"

_TCP_REPAIR = 19
_SO_MARK = 36
_LOOPBACK = 1  # its index in every network namespace
_NFT_TIMEOUT_S = 10
_NFT_TABLE = """
table inet msocks_probe {
    chain output {
        type filter hook output priority -300; policy accept;
        tcp sport 1 meta mark != 1 counter drop
    }
}
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the splice needs.

    Attributes:
        name: What is looked at, in one to three words; stable.
        ok: Whether it is as the splice needs it; None where that could not be tried, since something else is missing.
        finding: What was found, one clause.
        remedy: What to do; empty where nothing has to be done.
        reason: What the proxy's replies say where this is the only thing that is missing.
    """

    name: str
    ok: bool | None
    finding: str
    remedy: str = ""
    reason: DatapathReason = DatapathReason.UNSPECIFIED


class _Missing(Exception):
    """A check has failed."""

    def __init__(self, finding: str, remedy: str, reason: DatapathReason) -> None:
        super().__init__(finding)
        self.finding = finding
        self.remedy = remedy
        self.reason = reason


class _NotTried(Exception):
    """A check makes no sense before another one is passed."""


def probe(ports: PortRange | None = None) -> list[Check]:
    """Look at everything; takes about a second where the programs can be loaded. Raises nothing.

    Args:
        ports: Of the splice, for server legs; by default those of a proxy that is told nothing else.
    """
    ports = ports or PortRange(16384, 32767)
    found: dict[str, Check] = {}

    def needs(*names: str) -> None:
        for name in names:
            if not found[name].ok:
                raise _NotTried(f"not tried: first see to the {name}")

    def bpf_programs() -> str:
        needs("build", "privilege")
        return _programs()

    def hooks() -> str:
        needs("build", "privilege")
        return _hooks()

    checks: dict[str, Callable[[], str]] = {
        "build": _build,
        "privilege": _privilege,
        "BPF file system": _file_system,
        "BPF programs": bpf_programs,
        "hooks": hooks,
        "nftables": _nftables,
        "TCP repair": _tcp_repair,
        "raw sockets": _raw_sockets,
        "ports": lambda: _ports(ports),
    }
    for name, check in checks.items():
        try:
            found[name] = Check(name, True, check())
        except _Missing as missing:
            found[name] = Check(name, False, missing.finding, missing.remedy, missing.reason)
        except _NotTried as why:
            found[name] = Check(name, None, str(why))
    return list(found.values())


def is_available(checks: list[Check]) -> bool:
    """Whether the splice can be had, after `probe`."""
    return all(check.ok for check in checks)


def _no_kernel(finding: str, remedy: str) -> _Missing:
    return _Missing(finding, remedy, DatapathReason.NO_KERNEL_SUPPORT)


def _no_privilege(finding: str, remedy: str = _AS_ROOT) -> _Missing:
    return _Missing(finding, remedy, DatapathReason.NO_PRIVILEGE)


def _build() -> str:
    if importlib.util.find_spec("msocks.datapath.splice._libbpf") is None:
        raise _no_kernel(
            "this msocks was built without the splice (MSOCKS_WITHOUT_SPLICE)",
            "install one that was built with it: with clang and libbpf-dev, and without that variable",
        )
    try:
        from msocks.datapath.splice import loader
    except ImportError as error:
        raise _no_kernel(
            f"the splice's extension module cannot be loaded: {error}",
            "install libbpf 1.1 or newer; on Debian: apt-get install libbpf1",
        ) from None
    if not loader.OBJECT.exists():
        raise _no_kernel(f"{loader.OBJECT.name} is missing", "install msocks anew")
    return "built with the splice"


def _privilege() -> str:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    effective = int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if effective >> _CAP_SYS_ADMIN & 1:
        missing = [name for name in missing if name not in ("CAP_BPF", "CAP_PERFMON")]
    if missing:
        raise _no_privilege(f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    return ", ".join(_CAPABILITIES)


def _file_system() -> str:
    # mountinfo (proc(5)): ... mount point, options, optional fields, "-", type, ...
    mounts = [line.split() for line in Path("/proc/thread-self/mountinfo").read_text().splitlines()]
    kinds = [fields[fields.index("-") + 1] for fields in mounts if fields[4] == str(BPF_FILE_SYSTEM)]
    if not kinds or kinds[-1] != "bpf":
        raise _no_kernel(
            f"no BPF file system is mounted at {BPF_FILE_SYSTEM}",
            f"as root: mount -t bpf bpf {BPF_FILE_SYSTEM} (systemd does that at boot; a container needs it passed in)",
        )
    if not os.access(BPF_FILE_SYSTEM, os.W_OK | os.X_OK, effective_ids=True):
        raise _no_privilege(
            f"{BPF_FILE_SYSTEM} may not be written to",
            f"run as root, or give the proxy's user its directory there: install -d -o USER {BPF_FILE_SYSTEM}/msocks",
        )
    return f"mounted at {BPF_FILE_SYSTEM}"


def _programs() -> str:
    from msocks.datapath.splice.libbpf import BpfError, BpfObject
    from msocks.datapath.splice.loader import OBJECT

    with contextlib.closing(BpfObject(OBJECT)) as trial:
        trial.set_size("sessions", 1)
        try:
            trial.load()
        except BpfError as error:
            if error.errno == errno.EPERM:
                raise _no_privilege(
                    "bpf(2) is not permitted, in spite of the capabilities",
                    "look for a seccomp filter, a container's for example, or kernel lockdown",
                ) from None
            raise _no_kernel(
                f"the kernel does not take the splice's programs: {os.strerror(error.errno or 0)}",
                "Linux 6.1 or newer is needed; `make bpf` in the source tree prints the verifier's log",
            ) from None
    return "the kernel takes them"


def _hooks() -> str:
    from msocks.datapath.splice import clsact, libbpf

    try:
        if libbpf.has_tcx(_LOOPBACK):
            return "tcx"
        clsact.try_clsact(_LOOPBACK)
    except libbpf.BpfError as error:
        raise _no_kernel(
            f"there is neither tcx nor the clsact qdisc: {error.what}",
            "use Linux 6.6 or newer, or: modprobe sch_ingress",
        ) from None
    return "the clsact qdisc; tcx comes with Linux 6.6"


def _nftables() -> str:
    command = ["nft", "--check", "--file", "-"]
    try:
        done = subprocess.run(
            command, input=_NFT_TABLE, capture_output=True, text=True, check=False, timeout=_NFT_TIMEOUT_S
        )
    except FileNotFoundError:
        raise _no_kernel("the program nft is missing", "on Debian: apt-get install nftables") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_kernel(f"nft does not run: {error}", "install nftables anew") from None
    if done.returncode == 0:
        return "nft is there, and the kernel takes its rules"
    why = (done.stderr.strip() or "no reason given").splitlines()[0]
    if "not permitted" in why:
        raise _no_privilege(f"nftables may not be used: {why}")
    raise _no_kernel(
        f"the kernel does not take nftables rules: {why}", "modprobe nf_tables, or use a kernel that has it"
    )


def _tcp_repair() -> str:
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        except PermissionError:
            raise _no_privilege("TCP_REPAIR is not permitted") from None
        except OSError as error:
            raise _no_kernel(
                f"there is no TCP_REPAIR: {error.strerror}", "use a Linux kernel; gVisor has none"
            ) from None
    return "sockets can be taken out of the kernel"


def _raw_sockets() -> str:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, 1)
        except PermissionError:
            raise _no_privilege("raw sockets with a mark are not permitted") from None
        except OSError as error:
            if family == socket.AF_INET6:
                return "IPv4; this host has no IPv6"
            raise _no_kernel(f"there are no raw sockets: {error.strerror}", "use a Linux kernel") from None
    return "IPv4 and IPv6"


def _ports(ports: PortRange) -> str:
    try:
        setting = needed_reservation(ports)
        if setting is not None and not may_reserve():
            raise _no_privilege(
                f"the kernel gives ports of {ports} to anybody, and may not be told otherwise",
                f"as root: sysctl -w net.ipv4.ip_local_reserved_ports={setting}",
            )
        others = listeners_within(ports)
    except (OSError, MsocksError, ValueError) as error:
        raise _no_kernel(f"the ports {ports} cannot be looked at: {error}", "mount /proc") from None
    state = "will be reserved" if setting else "reserved, or given to nobody"
    if others:
        state += (
            f"; but the splice will cut off who listens on {', '.join(map(str, others))}: "
            "move the one or the other (splice_ports)"
        )
    return f"{ports}, {state}"
