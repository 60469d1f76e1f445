"""A thin wrapper of libbpf (the extension module that the build compiles): objects, maps, programs, ring buffers."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from msocks.datapath.splice import _libbpf
from msocks.datapath.splice.btf import describe, members, variable
from msocks.errors import MsocksError

_EXIST_OR_NOT = 0
_BEFORE_ALL = 1 << 3  # BPF_F_BEFORE
_TCX_INGRESS = 46  # enum bpf_attach_type
_LIBBPF_ERRORS = 4000  # from here on numbers are libbpf's own: a file that is no object
_PER_CPU = (5, 6)  # hash, array
_LOG_TAIL = 3000
_RECORD_LENGTH = struct.Struct("=I")  # before each record, see libbpf.c
_CONSTANTS = ".rodata"

ffi, lib = _libbpf.ffi, _libbpf.lib
lib.msocks_start()


class BpfError(MsocksError, OSError):
    """The kernel or libbpf refused something.

    Attributes:
        errno: Why.
        log: What libbpf and the verifier said of it, all of it: up to 16 MiB.
    """

    def __init__(self, code: int, what: str, *, remedy: str = "", log: str = "") -> None:
        code = errno.ENOEXEC if code >= _LIBBPF_ERRORS else code
        super().__init__(f"{what}: {os.strerror(code)}", remedy=remedy or _remedy(code))
        self.errno = code
        self.strerror = os.strerror(code)
        self.log = log


def _remedy(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    if code == errno.E2BIG or code == errno.ENOSPC:
        return "a table of the splice is full: raise limits.sessions"
    return "`msocks doctor` shows what the splice needs"


def checked(result: int, what: str) -> int:
    """`result`, unless it is a negated error number, which libbpf 1 returns for system calls as well."""
    if result < 0:
        raise BpfError(-result, what)
    return result


def _log() -> str:
    """What libbpf and the verifier have said since the last time."""
    size = ffi.new("size_t *")
    text = lib.msocks_log(size)
    lib.msocks_log_clear()
    if text == ffi.NULL:
        return ""
    return bytes(ffi.buffer(ffi.gc(text, _free), size[0])).decode(errors="replace")


def _free(text: object) -> None:
    lib.free(text)


class BpfMap:
    """One map; owns its descriptor."""

    def __init__(self, fd: int) -> None:
        """`fd` is owned from now on."""
        numbers = [ffi.new("uint32_t *") for _ in range(6)]
        name = ffi.new("char[16]")
        checked(lib.msocks_map_info(fd, *numbers, name), "a BPF map does not say what it is")
        self.fd = fd
        self.type, self.key_size, self.value_size, self.max_entries, self.flags, self.id = (each[0] for each in numbers)
        self.name = ffi.string(name).decode()
        stride = -(-self.value_size // 8) * 8
        self._read_size = stride * lib.libbpf_num_possible_cpus() if self.type in _PER_CPU else self.value_size
        self._value = ffi.new("char[]", self._read_size)
        self._done = ffi.new("uint32_t *")
        self._mapped: mmap.mmap | None = None

    def lookup(self, key: bytes) -> bytes | None:
        """The value; of a per-CPU map one after another, each padded to 8 bytes. None where there is none."""
        self._require(key, self.key_size)
        if lib.bpf_map_lookup_elem(self.fd, key, self._value) < 0:
            return None
        return bytes(ffi.buffer(self._value))

    def update(self, key: bytes, value: bytes) -> None:
        """Set the value. Raises BpfError, E2BIG where the map is full."""
        self._require(key, self.key_size)
        self._require(value, self.value_size)
        result = lib.bpf_map_update_elem(self.fd, key, value, _EXIST_OR_NOT)
        if result < 0:
            checked(result, f"cannot write to the table {self.name}")

    def update_all(self, keys: bytes, values: bytes, count: int) -> None:
        """Set several values in one system call. Raises BpfError, E2BIG where the map is full; some may be set then."""
        self._require(keys, count * self.key_size)
        self._require(values, count * self.value_size)
        self._done[0] = count
        result = lib.msocks_map_update_batch(self.fd, keys, values, self._done, 0)
        if result < 0:
            checked(result, f"cannot write to the table {self.name}")

    def delete(self, key: bytes) -> None:
        """Remove the entry; no-op where there is none."""
        self._require(key, self.key_size)
        lib.bpf_map_delete_elem(self.fd, key)

    def keys(self) -> Iterator[bytes]:
        """All keys; entries that come and go meanwhile may be missed or told twice."""
        key, following = ffi.NULL, ffi.new("char[]", self.key_size)
        while lib.bpf_map_get_next_key(self.fd, key, following) == 0:
            found = bytes(ffi.buffer(following))
            yield found
            key = ffi.new("char[]", found)

    def mmap(self) -> mmap.mmap:
        """The whole of a map that allows it, elements at multiples of the value size rounded up to 8."""
        if self._mapped is None:
            size = -(-self.value_size // 8) * 8 * self.max_entries
            page = mmap.PAGESIZE
            self._mapped = mmap.mmap(self.fd, -(-size // page) * page)
        return self._mapped

    def close(self) -> None:
        """Close the descriptor; a pinned map stays, and so does what was mapped while somebody holds it."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self._mapped = -1, None  # the number may soon be another file's

    def _require(self, given: bytes, size: int) -> None:
        # The kernel reads so many bytes, whoever owns them.
        if len(given) != size:
            raise ValueError(f"{len(given)} bytes for the table {self.name}, not {size}")


class RingBuffer:
    """The reading end of a ring buffer map."""

    def __init__(self, ring: BpfMap) -> None:
        self._fd = ring.fd
        self._size = ffi.new("size_t *")
        self._ring = lib.msocks_ring_open(ring.fd)
        if self._ring == ffi.NULL:
            raise BpfError(ffi.errno, "cannot read the events of the splice")

    def fileno(self) -> int:
        """To be watched for reading."""
        return self._fd

    def consume(self, callback: Callable[[bytes], None]) -> int:
        """Give all records that are there to `callback`, oldest first; returns their number.

        What `callback` raises first comes out of here, after the others have been read: the kernel wakes nobody for a
        buffer that was left half read.

        Raises:
            BpfError: The buffer cannot be read.
        """
        count = checked(lib.msocks_ring_read(self._ring), "cannot read the events of the splice")
        if not count:
            return 0
        records = bytes(ffi.buffer(lib.msocks_ring_records(self._ring, self._size), self._size[0]))
        error: Exception | None = None
        at = 0
        for _ in range(count):
            begin = at + _RECORD_LENGTH.size
            at = begin + _RECORD_LENGTH.unpack_from(records, at)[0]
            try:
                callback(records[begin:at])
            except Exception as raised:
                error = error or raised
        if error is not None:
            raise error
        return count

    def close(self) -> None:
        """Stop reading; the map stays open."""
        lib.msocks_ring_close(self._ring)
        self._ring = ffi.NULL


class BpfObject:
    """A compiled object: opened, its maps sized or taken from an earlier load, then loaded."""

    def __init__(self, path: Path) -> None:
        lib.msocks_log_clear()
        self._object = lib.bpf_object__open_file(str(path).encode(), ffi.NULL)
        if self._object == ffi.NULL:
            raise BpfError(
                ffi.errno,
                f"{path} is no BPF object",
                remedy="install msocks anew; a build with MSOCKS_WITHOUT_SPLICE=1 has none",
            )
        self.path = path

    def _maps(self) -> Iterator[tuple[str, object]]:
        found = lib.bpf_object__next_map(self._object, ffi.NULL)
        while found != ffi.NULL:
            if not lib.bpf_map__is_internal(found):
                yield ffi.string(lib.bpf_map__name(found)).decode(), found
            found = lib.bpf_object__next_map(self._object, found)

    def map_names(self) -> list[str]:
        """The maps that have a name of their own."""
        return [name for name, _ in self._maps()]

    def _map(self, name: str) -> object:
        for known, found in self._maps():
            if known == name:
                return found
        raise KeyError(name)

    def set_size(self, name: str, entries: int) -> None:
        """Before `load`: how many entries a map has."""
        checked(lib.bpf_map__set_max_entries(self._map(name), entries), f"cannot size the table {name}")

    def reuse(self, name: str, known: BpfMap) -> None:
        """Before `load`: use a map that exists. Raises BpfError where it is of another kind."""
        checked(lib.bpf_map__reuse_fd(self._map(name), known.fd), f"the table {name} is of another kind")

    def shape(self, name: str) -> str:
        """The kind of a map and the layouts of its keys and values, in words; nothing of its size."""
        found, types = self._map(name), lib.bpf_object__btf(self._object)
        key, value = lib.bpf_map__btf_key_type_id(found), lib.bpf_map__btf_value_type_id(found)
        kind = f"type {lib.bpf_map__type(found)} flags {lib.bpf_map__map_flags(found)}"
        return f"{kind}: {describe(types, key)} -> {describe(types, value)}"

    def constant(self, name: str) -> bytes:
        """What a `const volatile` variable of the object is set to. Raises KeyError."""
        place = lib.bpf_object__next_map(self._object, ffi.NULL)
        # libbpf puts the name of the object before the section's.
        while place != ffi.NULL and not ffi.string(lib.bpf_map__name(place)).endswith(_CONSTANTS.encode()):
            place = lib.bpf_object__next_map(self._object, place)
        if place == ffi.NULL:
            raise KeyError(name)
        offset, length = variable(lib.bpf_object__btf(self._object), _CONSTANTS, name)
        size = ffi.new("size_t *")
        values = ffi.buffer(ffi.cast("char *", lib.bpf_map__initial_value(place, size)), size[0])
        return bytes(values[offset : offset + length])

    def load(self) -> None:
        """Verify and load. Raises BpfError with the end of the verifier's log."""
        lib.msocks_log_clear()
        result = lib.bpf_object__load(self._object)
        if result < 0:
            log = _log()
            raise BpfError(-result, f"the kernel does not take the splice's programs\n{log[-_LOG_TAIL:]}", log=log)

    def map(self, name: str) -> BpfMap:
        """A loaded map, with a descriptor of its own."""
        return BpfMap(os.dup(lib.bpf_map__fd(self._map(name))))

    def programs(self) -> dict[str, int]:
        """The loaded programs: descriptors of their own, by name."""
        found = {}
        program = lib.bpf_object__next_program(self._object, ffi.NULL)
        while program != ffi.NULL:
            found[ffi.string(lib.bpf_program__name(program)).decode()] = os.dup(lib.bpf_program__fd(program))
            program = lib.bpf_object__next_program(self._object, program)
        return found

    def close(self) -> None:
        """Free it; what was loaded lives on by its own descriptors and pins."""
        lib.bpf_object__close(self._object)
        self._object = ffi.NULL


def pin(fd: int, path: Path) -> None:
    """Give a kernel object a name on a BPF file system. Raises BpfError."""
    checked(lib.bpf_obj_pin(fd, str(path).encode()), f"cannot pin {path}")


def open_pin(path: Path) -> int:
    """A descriptor of what is pinned there. Raises BpfError."""
    return checked(lib.bpf_obj_get(str(path).encode()), f"cannot open {path}")


def create_link(program: int, ifindex: int, attach_type: int) -> int:
    """Attach a program to an interface by tcx; the link's descriptor. Raises BpfError.

    It runs before those that are there: one of theirs may end the packet's way through the hook.
    """
    return checked(lib.msocks_link_create(program, ifindex, attach_type, _BEFORE_ALL), "cannot attach the splice (tcx)")


def attach_to_cgroup(program: int, cgroup: int, attach_type: int) -> int:
    """Attach a program to a control group beside those that are there; the link's descriptor. Raises BpfError."""
    return checked(lib.msocks_link_create(program, cgroup, attach_type, 0), "cannot attach to the control group")


def update_link(link: int, program: int) -> None:
    """Let another program take the place of a link's, between two packets. Raises BpfError."""
    checked(lib.msocks_link_update(link, program), "cannot replace the splice's program")


def cut_link(link: int) -> None:
    """Detach a link's program at once; a link that only loses its last name goes some time later. Raises BpfError."""
    checked(lib.bpf_link_detach(link), "cannot detach the splice (tcx)")


def link_of(link: int) -> tuple[int, int]:
    """The program (id) and the interface (index; 0 where it is gone) of a link. Raises BpfError."""
    numbers = [ffi.new("uint32_t *") for _ in range(3)]
    checked(lib.msocks_link_info(link, *numbers), "a BPF link does not say what it is")
    return numbers[1][0], numbers[2][0]


def has_tcx(ifindex: int) -> bool:
    """Whether the kernel has tcx (Linux 6.6), asked at an interface; changes nothing. Raises BpfError."""
    result = lib.bpf_prog_query(ifindex, _TCX_INGRESS, 0, ffi.NULL, ffi.NULL, ffi.new("uint32_t *", 0))
    return result == 0 or (result != -errno.EINVAL and checked(result, "cannot ask for tcx") == 0)


def program_id(program: int) -> int:
    """The kernel's number of a program. Raises BpfError."""
    return _program_info(program)[0]


def verified_instructions(program: int) -> int:
    """How many instructions the verifier followed; it gives up at a million. Raises BpfError."""
    return _program_info(program)[1]


def _program_info(program: int) -> tuple[int, int]:
    identity, kind, verified = (ffi.new("uint32_t *") for _ in range(3))
    name, tag = ffi.new("char[16]"), ffi.new("unsigned char[8]")
    checked(lib.msocks_program_info(program, identity, kind, verified, name, tag), "a program does not say what it is")
    return int(identity[0]), int(verified[0])


def run(program: int, packet: bytes = b"", context: bytes = b"", repeat: int = 1) -> tuple[int, bytes, bytes]:
    """BPF_PROG_TEST_RUN: the program's verdict, the packet and the context as it left them. Raises BpfError."""
    room = len(packet) + 512 if packet else 0
    data_out, data_size = ffi.new("char[]", max(1, room)), ffi.new("uint32_t *", room)
    context_out, context_size = ffi.new("char[]", max(1, len(context))), ffi.new("uint32_t *", len(context))
    verdict, duration = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    result = lib.msocks_test_run(
        program,
        ffi.from_buffer(packet) if packet else ffi.NULL,
        len(packet),
        data_out if packet else ffi.NULL,
        data_size,
        ffi.from_buffer(context) if context else ffi.NULL,
        len(context),
        context_out if context else ffi.NULL,
        context_size,
        repeat,
        verdict,
        duration,
    )
    checked(result, "the program does not run")
    signed = verdict[0] - (1 << 32) if verdict[0] & 0x80000000 else verdict[0]
    return signed, bytes(ffi.buffer(data_out, data_size[0])), bytes(ffi.buffer(context_out, context_size[0]))


def call(program: int, argument: bytes) -> int:
    """Run a program of type syscall with its argument, and return what it does. Raises BpfError."""
    verdict, duration, unused = ffi.new("uint32_t *"), ffi.new("uint32_t *"), ffi.new("uint32_t *")
    context = ffi.from_buffer(argument)
    result = lib.msocks_test_run(
        program, ffi.NULL, 0, ffi.NULL, unused, context, len(argument), ffi.NULL, unused, 0, verdict, duration
    )
    checked(result, "the program does not run")
    return int(verdict[0])


def structure(path: Path, name: str) -> tuple[int, dict[str, int]]:
    """Size of a C structure in a compiled object, and the offset of each member in bytes. Raises KeyError, BpfError."""
    types = lib.btf__parse_elf(str(path).encode(), ffi.NULL)
    if types == ffi.NULL:
        raise BpfError(ffi.errno, f"{path} has no type information")
    try:
        return members(types, name)
    finally:
        lib.btf__free(types)
