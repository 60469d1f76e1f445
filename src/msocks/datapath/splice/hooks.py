"""Hangs the splice's programs on the interfaces of this network namespace, at traffic control's hooks.

By tcx where the kernel has it (Linux 6.6), whose links are pinned and outlive this process; else by the clsact qdisc,
whose filters do so by themselves. Every interface but the loopback gets them, also those that come later: which way a
packet takes is the routes' affair.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import structlog

from msocks.datapath.splice import clsact, libbpf
from msocks.datapath.splice.libbpf import BpfError
from msocks.datapath.splice.loader import SpliceProgram
from msocks.link_monitor.route_socket import ARPHRD_ETHER, Interface, InterfaceGone, Overrun, RouteSocket
from msocks.transport.reactor import Reactor

_log = structlog.get_logger("msocks.datapath.splice")

# enum bpf_attach_type, Linux 6.6
_TCX_INGRESS = 46
_TCX_EGRESS = 47
_DIRECTIONS = {"ingress": _TCX_INGRESS, "egress": _TCX_EGRESS}
_NO_TCX = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_PRIORITY = 1  # of the clsact filters: before those of others
# Without a link-layer header: PPP, IP tunnels, WireGuard, TUN, modems.
_WITHOUT_HEADER = {512, 519, 65534, 768, 769, 776, 778, 823}


class Hooks:
    """See the module."""

    def __init__(self, program: SpliceProgram, *, clsact: bool = False) -> None:
        """`clsact` uses that, also where there is tcx."""
        self._program = program
        self._links = program.pin_directory / "links"
        self._clsact = clsact
        self._handle = handle(program.pin_directory)
        self._attached: dict[int, Interface] = {}
        self._socket: RouteSocket | None = None
        self._reactor: Reactor | None = None
        self._on_gone: Callable[[int], int] = lambda _index: 0

    def attach_all(self) -> None:
        """Attach to every interface that there is; where an earlier process did, only the program changes.

        Raises:
            BpfError: The kernel refuses.
            OSError: There is no NETLINK_ROUTE here.
        """
        self._socket = self._socket or RouteSocket()
        for interface in self._socket.interfaces():
            try:
                self._attach(interface)
            except BpfError as error:
                if error.errno != errno.ENODEV:  # gone since
                    raise
        for pinned in self._links.iterdir():
            if int(pinned.name.partition("-")[0]) not in self._attached:
                pinned.unlink()

    def follow(self, reactor: Reactor, on_gone: Callable[[int], int]) -> None:
        """Attach to interfaces that come, from now on.

        `on_gone` is told the index of one that goes, and says how many legs were on their way over it.
        """
        assert self._socket is not None
        self._on_gone = on_gone
        self._reactor = reactor
        reactor.watch(self._socket.fileno(), lambda _events: self._on_change())

    def verify(self) -> list[str]:
        """Attach again where somebody has detached a program; returns the names of those interfaces.

        What the kernel refuses is logged, and tried again by the next call.
        """
        mended = []
        for interface in tuple(self._attached.values()):
            try:
                cut = [name for name in _DIRECTIONS if not self._is_attached(interface.index, name)]
                if cut:
                    self._attach(interface, cut)
                    mended.append(interface.name)
            except BpfError as error:
                _report(interface, error)
        return mended

    def detach_all(self) -> None:
        """Take the programs off all interfaces."""
        for index in self._attached:
            for direction in _DIRECTIONS:
                self._detach(index, direction)
        self._attached.clear()

    def close(self) -> None:
        """Follow no more; what is attached stays."""
        if self._socket is not None:
            if self._reactor is not None:
                self._reactor.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None

    # -- one interface ----------------------------------------------------------------------------------------------

    def _attach(self, interface: Interface, directions: Iterable[str] = tuple(_DIRECTIONS)) -> None:
        if interface.is_loopback or not (interface.hardware == ARPHRD_ETHER or interface.hardware in _WITHOUT_HEADER):
            return
        suffix = "" if interface.hardware == ARPHRD_ETHER else "_l3"
        # Before: what is half attached has to be taken off as well.
        self._attached[interface.index] = interface
        for direction in directions:
            self._hang(interface.index, direction, self._program.program(f"splice_{direction}{suffix}"))

    def _hang(self, index: int, direction: str, program: int) -> None:
        if not self._clsact:
            try:
                self._link(index, direction, program)
            except BpfError as error:
                if error.errno not in _NO_TCX or libbpf.has_tcx(index):
                    raise
                self._clsact = True
        if self._clsact:
            egress = direction == "egress"
            clsact.attach_filter(index, program, egress=egress, handle=self._handle, priority=_PRIORITY)

    def _link(self, index: int, direction: str, program: int) -> None:
        pin = self._pin(index, direction)
        if pin.exists():
            link = libbpf.open_pin(pin)
            try:
                if libbpf.link_of(link)[1] == index:
                    libbpf.update_link(link, program)
                    return
            finally:
                os.close(link)
            pin.unlink()  # cut, or of an interface that is gone, whose number another one has got
        link = libbpf.create_link(program, index, _DIRECTIONS[direction])
        try:
            libbpf.pin(link, pin)
        finally:
            os.close(link)

    def _is_attached(self, index: int, direction: str) -> bool:
        if self._clsact:
            return clsact.filter_of(index, egress=direction == "egress", handle=self._handle, priority=_PRIORITY) != 0
        pin = self._pin(index, direction)
        if not pin.exists():
            return False
        link = libbpf.open_pin(pin)
        try:
            return libbpf.link_of(link)[1] == index
        finally:
            os.close(link)

    def _detach(self, index: int, direction: str) -> None:
        if self._clsact:
            clsact.detach_filter(index, egress=direction == "egress", handle=self._handle, priority=_PRIORITY)
            return
        pin = self._pin(index, direction)
        if pin.exists():
            link = libbpf.open_pin(pin)
            try:
                # Else it lives until the kernel has got round to it, and the same program cannot be attached meanwhile.
                libbpf.cut_link(link)
            finally:
                os.close(link)
            pin.unlink()

    def _pin(self, index: int, direction: str) -> Path:
        return self._links / f"{index}-{direction}"

    # -- changes ----------------------------------------------------------------------------------------------------

    def _on_change(self) -> None:
        assert self._socket is not None
        try:
            for fact in self._socket.read_events():
                match fact:
                    case Interface() if fact.index not in self._attached:
                        self._attach_late(fact)
                    case InterfaceGone(index=index):
                        self._forget(index)
        except Overrun:
            there = {interface.index: interface for interface in self._socket.interfaces()}
            for index in set(self._attached) - set(there):
                self._forget(index)
            for index, interface in there.items():
                if index not in self._attached:
                    self._attach_late(interface)

    def _attach_late(self, interface: Interface) -> None:
        try:
            self._attach(interface)
        except BpfError as error:
            _report(interface, error)

    def _forget(self, index: int) -> None:
        interface = self._attached.pop(index, None)
        if interface is None:
            return
        legs = self._on_gone(index)
        if legs:
            _log.warning(
                "interface_gone", interface=interface.name, legs=legs, reason="they go on when there is another way"
            )
        if not self._clsact:
            for direction in _DIRECTIONS:
                self._pin(index, direction).unlink(missing_ok=True)


def _report(interface: Interface, error: BpfError) -> None:
    if error.errno != errno.ENODEV:  # gone since
        _log.error("interface_not_spliced", interface=interface.name, reason=str(error))


def handle(pin_directory: Path) -> int:
    """Names a proxy's clsact filters among those of others on the same interface."""
    return zlib.crc32(pin_directory.name.encode()) or 1


def remove_filters(pin_directory: Path, programs: Collection[int]) -> None:
    """Take a proxy's filters off the clsact qdiscs where they run one of these programs (ids), whoever attached them.

    Raises:
        OSError: There is no NETLINK_ROUTE here.
    """
    with contextlib.closing(RouteSocket()) as routes:
        for interface in routes.interfaces():
            for direction in _DIRECTIONS:
                egress = direction == "egress"
                named = handle(pin_directory)
                found = clsact.filter_of(interface.index, egress=egress, handle=named, priority=_PRIORITY)
                if found in programs:
                    clsact.detach_filter(interface.index, egress=egress, handle=named, priority=_PRIORITY)
