"""The eBPF programs of one run: loaded, attached to its control group, told what to do.

Nothing is pinned: links and tables live in this process alone, and are gone with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from msocks.interception import layout
from msocks.interception.layout import Attempt, Settings
from msocks.interception.network_namespace import own_netns_cookie
from msocks.interception.refusal import CannotIntercept

OBJECT = Path(__file__).with_name("_interception.bpf.o")

# enum bpf_attach_type
_ATTACH_TYPES = {
    "msocks_egress": 1,
    "msocks_sock_create": 2,
    "msocks_connect4": 10,
    "msocks_connect6": 11,
    "msocks_getpeername4": 29,
    "msocks_getpeername6": 30,
}
_ATTACH_TYPES_OF_UDP = {"msocks_sendmsg4": 14, "msocks_sendmsg6": 15, "msocks_recvmsg4": 19, "msocks_recvmsg6": 20}
_FIRST = bytes(4)


class Hooks:
    """See the module. `configure` has to come before the first connect()."""

    def __init__(self, cgroup: int, *, udp: bool) -> None:
        """Attach to the control group (a descriptor of its directory); with `udp` what concerns datagrams as well.

        Raises:
            CannotIntercept: The privilege is missing, or the kernel is too old, or msocks was built without.
        """
        if importlib.util.find_spec("msocks.datapath.splice._libbpf") is None:
            raise CannotIntercept(
                "this msocks was built without its eBPF parts", remedy="install it without MSOCKS_WITHOUT_SPLICE"
            )
        try:
            from msocks.datapath.splice import libbpf
        except ImportError as error:
            raise CannotIntercept(
                f"its eBPF parts cannot be loaded: {error}",
                remedy="install libbpf 1.1 or newer; on Debian: apt-get install libbpf1",
            ) from None
        self._stack = contextlib.ExitStack()
        try:
            compiled = libbpf.BpfObject(OBJECT)
            self._stack.callback(compiled.close)
            compiled.load()
            programs = compiled.programs()
            for program in programs.values():
                self._stack.callback(os.close, program)
            for name, kind in (_ATTACH_TYPES | (_ATTACH_TYPES_OF_UDP if udp else {})).items():
                self._stack.callback(os.close, libbpf.attach_to_cgroup(programs[name], cgroup, kind))
            self._run = compiled.map("run")
            self._exclusions = compiled.map("exclusions")
            attempts = compiled.map("attempts")
            for table in (self._run, self._exclusions, attempts):
                self._stack.callback(table.close)
            self._ring = libbpf.RingBuffer(attempts)
            self._stack.callback(self._ring.close)
        except libbpf.BpfError as error:
            self._stack.close()
            raise CannotIntercept(
                f"the kernel does not take the connect hooks: {error.strerror}",
                remedy="run as root (sudo), or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW; "
                "the kernel has to be Linux 6.1 or newer",
            ) from None

    def configure(self, settings: Settings) -> None:
        """From now on redirect what is connected in this network namespace."""
        self._run.update(_FIRST, settings.pack(own_netns_cookie()))

    def leave_alone(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        """Destinations that are not redirected, in addition to those told before; 1,024 at most.

        Raises:
            CannotIntercept: They are more. What was told first holds.
        """
        for network in networks:
            try:
                self._exclusions.update(layout.excluded(network), b"\1")
            except OSError:
                raise CannotIntercept(
                    "more than 1,024 networks shall be reached directly", remedy="put them together"
                ) from None

    def redirect_again(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        """Destinations that were left alone, and shall not be any more."""
        for network in networks:
            self._exclusions.delete(layout.excluded(network))

    def fileno(self) -> int:
        """To be watched for reading: attempts have come."""
        return self._ring.fileno()

    def attempts(self, callback: Callable[[Attempt], None]) -> None:
        """Give what has come to `callback`."""
        self._ring.consume(lambda record: callback(layout.read_attempt(record)))

    def close(self) -> None:
        """Detach."""
        self._stack.close()
