"""The splice: the kernel rewrites the packets of two TCP connections so that they become one conversation."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from msocks.datapath.splice.ports import PortRange, reserve
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.protocol.leg import DatapathReason

if TYPE_CHECKING:
    from msocks.datapath.splice.datapath import SpliceDatapath
    from msocks.transport.reactor import Reactor

__all__ = ["PortRange", "open_splice"]


def open_splice(
    reactor: Reactor, *, pin_directory: Path, ports: PortRange, slots: int, half_closed_s: float
) -> SpliceDatapath:
    """Load the splice into the kernel, or adopt what an earlier process has left there, and attach it.

    Args:
        reactor: The event loop's part for sockets.
        pin_directory: Where the tables live on, on a BPF file system; made where it is missing. One per proxy.
        ports: Local ports for server legs; nobody else may use them.
        slots: How many sessions fit, those in TIME-WAIT included; about 0.9 KiB of kernel memory each.
        half_closed_s: How long a session may stay silent of which one direction has ended.

    Raises:
        SpliceRefused: This host refuses something that is needed.
        BpfError: The kernel does not take the programs.
    """
    # Loaded here: what tells why there is no splice (`feature_probe`) has to run where these cannot be imported.
    try:
        from msocks.datapath.splice.datapath import SpliceDatapath
        from msocks.datapath.splice.firewall import Firewall, table_name
        from msocks.datapath.splice.hooks import Hooks
        from msocks.datapath.splice.layout import MARK_OF_DAEMON
        from msocks.datapath.splice.loader import load
        from msocks.datapath.splice.tables import carries_nothing
    except ImportError as error:
        raise SpliceRefused(
            f"this msocks lacks the compiled parts of the splice: {error}",
            remedy="`msocks doctor` says how to get them",
            reason=DatapathReason.NO_KERNEL_SUPPORT,
        ) from error

    reserve(ports)
    program = load(pin_directory, slots=slots)
    firewall = Firewall(table_name(pin_directory.name), MARK_OF_DAEMON)
    try:
        # Before anything is hooked: a host without nft shall relay, not fail when it begins to listen.
        firewall.install(ports, ())
        hooks = Hooks(program)
        datapath = SpliceDatapath(reactor, program, hooks, firewall, ports=ports, half_closed_s=half_closed_s)
    except BaseException:
        # Sessions that an earlier process has left go on; else nothing may stay.
        if carries_nothing(program):
            program.unload()
            with contextlib.suppress(SpliceRefused):
                firewall.remove()
        else:
            program.close()
        raise
    try:
        hooks.attach_all()
        hooks.follow(reactor, datapath.tables.forget_interface)
    except BaseException:
        datapath.close()
        raise
    return datapath
