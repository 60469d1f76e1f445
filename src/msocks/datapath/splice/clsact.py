"""The clsact qdisc: attaches programs where the kernel has no tcx. Its filters outlive who made them."""

from __future__ import annotations

import errno

from msocks.datapath.splice import _libbpf
from msocks.datapath.splice.libbpf import checked

ffi, lib = _libbpf.ffi, _libbpf.lib


def try_clsact(ifindex: int) -> None:
    """See whether the kernel has the clsact qdisc, by making one; it does not stay. Raises BpfError."""
    result = lib.msocks_clsact_create(ifindex)
    if result == -errno.EEXIST:
        return
    checked(result, "cannot make the clsact qdisc")
    lib.msocks_clsact_destroy(ifindex)


def attach_filter(ifindex: int, program: int, *, egress: bool, handle: int, priority: int) -> None:
    """Attach a program by the clsact qdisc, in place of an earlier one. Raises BpfError."""
    result = lib.msocks_clsact_create(ifindex)
    if result < 0 and result != -errno.EEXIST:
        checked(result, "cannot make the clsact qdisc")
    result = lib.msocks_filter_attach(ifindex, egress, program, handle, priority)
    checked(result, "cannot attach the splice (clsact)")


def detach_filter(ifindex: int, *, egress: bool, handle: int, priority: int) -> None:
    """The opposite; no-op where there is none."""
    lib.msocks_filter_detach(ifindex, egress, handle, priority)


def filter_of(ifindex: int, *, egress: bool, handle: int, priority: int) -> int:
    """The program (id) that is attached by the clsact qdisc; 0 where there is none."""
    found = ffi.new("uint32_t *")
    lib.msocks_filter_query(ifindex, egress, handle, priority, found)
    return int(found[0])
