"""Brings the splice into the kernel, and finds it there again.

Everything is pinned on a BPF file system, in one directory for each proxy::

    maps/NAME  layouts/NAME  programs/NAME  links/IFINDEX-ingress  links/IFINDEX-egress

so that spliced connections go on when the proxy dies. A later process adopts the tables, and puts its own programs in
the place of the old ones between two packets.

A layout is a symbolic link that leads nowhere: its target is a digest of the layout of the table of that name, and of
the version that the programs give it, which changes where the same bytes mean something else. (The kernel knows a
pinned table's layout as well, but tells it to CAP_SYS_ADMIN alone.)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from pathlib import Path

from msocks.datapath.splice import libbpf
from msocks.datapath.splice.libbpf import BpfError, BpfMap, BpfObject
from msocks.datapath.splice.processors import processors
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.protocol.leg import DatapathReason

OBJECT = Path(__file__).with_name("_splice.bpf.o")
_START_EXPIRY = "start_expiry"
_LAYOUT_VERSION = "layout_version"
_MOUNTS = Path("/proc/thread-self/mountinfo")


class SpliceProgram:
    """The loaded programs and tables; descriptors are closed by `close`, the kernel's objects removed by `unload`."""

    def __init__(self, pin_directory: Path, maps: dict[str, BpfMap], programs: dict[str, int]) -> None:
        self.pin_directory = pin_directory
        self._maps = maps
        self._programs = programs

    def map(self, name: str) -> BpfMap:
        """A table; it stays this object's."""
        return self._maps[name]

    def program(self, name: str) -> int:
        """A program's descriptor; it stays this object's."""
        return self._programs[name]

    def close(self) -> None:
        """Let go of it in this process. What is pinned goes on."""
        for table in self._maps.values():
            table.close()
        for program in self._programs.values():
            os.close(program)
        self._maps.clear()
        self._programs.clear()

    def unload(self) -> None:
        """Take it out of the kernel: connections that are spliced stand still from now on."""
        self.close()
        discard(self.pin_directory)


def load(pin_directory: Path, *, slots: int) -> SpliceProgram:
    """Load the programs, with the tables that are pinned there, or with new ones.

    Tables that were there before stay where it fails; a directory that it made goes again.

    Args:
        pin_directory: On a BPF file system; made where it is missing.
        slots: Entries of a new table of sessions; one that is adopted keeps its size.

    Raises:
        SpliceRefused: The directory is on no BPF file system, or tables of another layout are there.
        BpfError: The kernel does not take it.
    """
    _require_bpf_file_system(pin_directory)
    is_new = not _exists(pin_directory)
    try:
        _make_directories(pin_directory)
        return _load(pin_directory, slots)
    except BaseException:
        if is_new:
            discard(pin_directory)
        raise


def _load(pin_directory: Path, slots: int) -> SpliceProgram:
    loaded = BpfObject(OBJECT)
    maps: dict[str, BpfMap] = {}
    try:
        sizes = {"sessions": slots, "flows": 4 * slots, "opening": slots, "busy": processors()}
        for name in loaded.map_names():
            known = _pinned(pin_directory / "maps" / name)
            if known is None:
                if name in sizes:
                    loaded.set_size(name, sizes[name])
                continue
            maps[name] = known
            if _layout(pin_directory, name) != _digest(loaded, name):
                raise _other_layout(pin_directory, name)
            loaded.reuse(name, known)
        loaded.load()
        for name in loaded.map_names():
            if name not in maps:
                maps[name] = loaded.map(name)
                # First: a table without it is adopted by nobody.
                _note_layout(pin_directory, name, _digest(loaded, name))
                libbpf.pin(maps[name].fd, pin_directory / "maps" / name)
        programs = loaded.programs()
    except BaseException:
        for table in maps.values():
            table.close()
        raise
    finally:
        loaded.close()
    found = SpliceProgram(pin_directory, maps, programs)
    try:
        for name, program in programs.items():
            _pin_anew(program, pin_directory / "programs" / name)
        verdict, _, _ = libbpf.run(programs[_START_EXPIRY], repeat=0)
        if verdict:
            raise BpfError(errno.EINVAL, f"the timer of the splice does not start (code {verdict})")
    except BaseException:
        found.close()
        raise
    return found


def leave_alone(pin_directory: Path) -> bool:
    """Let programs that an earlier process has left there carry what they carry, and have no part in new connections.

    Returns:
        Whether there are any. The firewall table that belongs to them stands, and wants to see the mark of the daemon.

    Raises:
        BpfError: The kernel does not let this process look; whoever cannot has not put them there either.
    """
    listeners = _pinned(pin_directory / "maps" / "listeners") if _exists(pin_directory) else None
    if listeners is None:
        return False
    for key in list(listeners.keys()):
        listeners.delete(key)
    listeners.close()
    return True


def discard(pin_directory: Path) -> None:
    """Remove everything that is pinned there; the kernel frees what nobody holds. No-op where there is nothing."""
    shutil.rmtree(pin_directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        pin_directory.parent.rmdir()


def _require_bpf_file_system(directory: Path) -> None:
    place = next(path for path in (directory, *directory.parents) if _exists(path))
    device = place.stat().st_dev
    # mountinfo (proc(5)): ID, parent, major:minor, ..., "-", type, ...
    mounts = [line.split() for line in _MOUNTS.read_text().splitlines()]
    kinds = {fields[2]: fields[fields.index("-") + 1] for fields in mounts}
    if kinds.get(f"{os.major(device)}:{os.minor(device)}") != "bpf":
        raise SpliceRefused(
            f"{place} is on no BPF file system, where {directory} should be",
            remedy="as root: mount -t bpf bpf /sys/fs/bpf (systemd does that at boot; a container needs it passed in)",
            reason=DatapathReason.NO_KERNEL_SUPPORT,
        )


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # what may not be looked at is not there, to this process
        return False
    return True


def _make_directories(pin_directory: Path) -> None:
    try:
        for name in ("maps", "layouts", "programs", "links"):
            (pin_directory / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpliceRefused(
            f"cannot make {pin_directory}: {error.strerror}",
            remedy="run as root, or give the proxy's user its directory there: install -d -o USER /sys/fs/bpf/msocks",
            reason=DatapathReason.NO_PRIVILEGE,
        ) from error


def _pinned(path: Path) -> BpfMap | None:
    return BpfMap(libbpf.open_pin(path)) if path.exists() else None


def _pin_anew(fd: int, path: Path) -> None:
    """In place of an earlier one; a reader finds the one or the other."""
    # No dot: the kernel keeps such names for itself.
    successor = path.with_name(f"{path.name}_next")
    successor.unlink(missing_ok=True)
    libbpf.pin(fd, successor)
    successor.rename(path)


def _digest(loaded: BpfObject, name: str) -> str:
    version = int.from_bytes(loaded.constant(_LAYOUT_VERSION), sys.byteorder)
    return hashlib.sha256(f"version {version} {loaded.shape(name)}".encode()).hexdigest()


def _layout(pin_directory: Path, name: str) -> str | None:
    path = pin_directory / "layouts" / name
    return str(path.readlink()) if path.is_symlink() else None


def _note_layout(pin_directory: Path, name: str, digest: str) -> None:
    path = pin_directory / "layouts" / name
    path.unlink(missing_ok=True)
    path.symlink_to(digest)


def _other_layout(pin_directory: Path, name: str) -> SpliceRefused:
    return SpliceRefused(
        f"the table {name} in {pin_directory} is of another version of msocks",
        remedy="with the proxy stopped, run `msocks doctor --discard-splice-state DIR` on its state directory: "
        "sessions that the kernel still carries end. Or run the proxy with --datapath relay",
        reason=DatapathReason.NO_KERNEL_SUPPORT,
    )
