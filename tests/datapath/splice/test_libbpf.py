"""Maps, ring buffers and test runs by way of a real kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import struct
import subprocess
from collections.abc import Iterator

import hatch_build
import pytest
from tests.datapath.splice.loading import loaded, own_host
from tests.datapath.splice.packet_context import PacketContext

from msocks.datapath.splice import libbpf
from msocks.datapath.splice.layout import LAYOUT_VERSION
from msocks.datapath.splice.libbpf import BpfError, BpfMap, BpfObject, RingBuffer
from msocks.datapath.splice.loader import OBJECT, SpliceProgram
from msocks.datapath.splice.processors import processors


@pytest.fixture(scope="module")
def program() -> Iterator[SpliceProgram]:
    with own_host() as (_, pins), loaded(pins) as program:
        yield program


def key(number: int) -> bytes:
    return number.to_bytes(36, "big")


def test_a_map_keeps_what_it_is_told(program: SpliceProgram):
    flows = program.map("flows")
    assert flows.lookup(key(1)) is None
    for number in range(10):
        flows.update(key(number), number.to_bytes(12, "big"))
    assert {int.from_bytes(found, "big") for found in list(flows.keys())} == set(range(10))
    assert flows.lookup(key(7)) == (7).to_bytes(12, "big")
    flows.delete(key(7))
    flows.delete(key(7))
    assert flows.lookup(key(7)) is None
    for number in range(10):
        flows.delete(key(number))
    assert list(flows.keys()) == []


def test_several_are_set_at_once(program: SpliceProgram):
    flows = program.map("flows")
    flows.update_all(key(1) + key(2), b"a" * 12 + b"b" * 12, 2)
    assert (flows.lookup(key(1)), flows.lookup(key(2))) == (b"a" * 12, b"b" * 12)
    for keys, values in ((key(1), bytes(24)), (key(1) + key(2), bytes(23))):
        with pytest.raises(ValueError, match="for the table flows"):
            flows.update_all(keys, values, 2)
    for number in (1, 2):
        flows.delete(key(number))


def test_a_full_map_says_so(program: SpliceProgram):
    flows = program.map("flows")
    for number in range(flows.max_entries):
        flows.update(key(number), bytes(12))
    with pytest.raises(BpfError, match="flows") as full:
        flows.update(key(flows.max_entries), bytes(12))
    assert full.value.errno == errno.E2BIG
    assert "limits.sessions" in full.value.remedy
    for found in list(flows.keys()):
        flows.delete(found)


@pytest.mark.parametrize("length", [0, 35, 37])
def test_keys_and_values_of_another_length_do_not_reach_the_kernel(program: SpliceProgram, length: int):
    """It would read or write what lies behind them."""
    flows = program.map("flows")
    with pytest.raises(ValueError, match=f"{length} bytes for the table flows, not 36"):
        flows.lookup(bytes(length))
    with pytest.raises(ValueError, match="not 36"):
        flows.update(bytes(length), bytes(12))
    with pytest.raises(ValueError, match="not 12"):
        flows.update(key(1), bytes(length))
    with pytest.raises(ValueError, match="not 36"):
        flows.delete(bytes(length))
    assert list(flows.keys()) == []


def test_a_closed_map_is_no_other_file(program: SpliceProgram):
    again = BpfMap(libbpf.open_pin(program.pin_directory / "maps" / "flows"))
    number = again.fd
    again.close()
    successor = libbpf.open_pin(program.pin_directory / "maps" / "flows")
    assert successor == number
    again.close()
    with pytest.raises(BpfError) as closed:
        again.update(key(1), bytes(12))
    assert closed.value.errno == errno.EBADF
    os.close(successor)


def test_mapped_elements_lie_at_multiples_of_8_bytes(program: SpliceProgram):
    sessions = program.map("sessions")
    memory = sessions.mmap()
    assert sessions.mmap() is memory
    stride = -(-sessions.value_size // 8) * 8
    for slot in (1, sessions.max_entries - 1):
        sessions.update(slot.to_bytes(4, "little"), bytes([slot]) * sessions.value_size)
        assert memory[slot * stride : slot * stride + sessions.value_size] == bytes([slot]) * sessions.value_size
        sessions.update(slot.to_bytes(4, "little"), bytes(sessions.value_size))


def test_a_map_per_processor_gives_a_value_for_each(program: SpliceProgram):
    value = program.map("drops").lookup(bytes(4))
    assert value is not None
    assert len(value) == 8 * processors()


def test_a_pin_is_another_descriptor_of_the_same(program: SpliceProgram):
    path = program.pin_directory / "maps" / "flows"
    with contextlib.closing(BpfMap(libbpf.open_pin(path))) as again:
        assert again.id == program.map("flows").id
        assert again.fd != program.map("flows").fd
    with pytest.raises(BpfError) as missing:
        libbpf.open_pin(path.with_name("nothing"))
    assert missing.value.errno == errno.ENOENT
    with pytest.raises(BpfError) as taken:
        libbpf.pin(program.map("flows").fd, path)
    assert taken.value.errno == errno.EEXIST


def test_a_program_runs_on_a_packet_that_is_not_of_the_splice(program: SpliceProgram):
    packet = bytes(12) + b"\x08\x00" + bytes.fromhex("4500001c000000004011") + bytes(2) + bytes(16)
    for name in ("splice_ingress", "splice_egress"):
        verdict, left, _ = libbpf.run(program.program(name), packet)
        assert (verdict, left) == (-1, packet)


def test_a_context_goes_in_and_comes_out(program: SpliceProgram):
    context = PacketContext(mark=7, wire_len=3000, gso_segs=2, gso_size=1460)
    _, _, left = libbpf.run(program.program("splice_ingress"), bytes(64), bytes(context))
    after = PacketContext.from_buffer_copy(left)
    assert (after.mark, after.wire_len, after.gso_segs) == (7, 3000, 2)
    with pytest.raises(BpfError) as refused:
        libbpf.run(program.program("splice_ingress"), bytes(64), bytes(PacketContext(tc_index=1)))
    assert refused.value.errno == errno.EINVAL


# -- what the compiled object says of itself ---------------------------------------------------------------------------


def test_both_halves_are_of_one_version():
    with contextlib.closing(BpfObject(OBJECT)) as opened:
        assert opened.constant("layout_version") == struct.pack("=I", LAYOUT_VERSION)
        with pytest.raises(KeyError):
            opened.constant("nothing")
    with pytest.raises(KeyError):
        libbpf.structure(OBJECT, "nothing")


# -- the ring buffer ---------------------------------------------------------------------------------------------------


def unexpected(record: bytes) -> None:
    raise AssertionError(record)


def is_readable(fd: int) -> bool:
    with contextlib.closing(select.epoll()) as poll:
        poll.register(fd, select.EPOLLIN)
        return bool(poll.poll(0))


WRITER = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");
SEC("tc") int write(struct __sk_buff *skb)
{
    __u32 mark = skb->mark;
    return bpf_ringbuf_output(&ring, &mark, sizeof(mark), 0);
}
char _license[] SEC("license") = "GPL";
"""


@pytest.fixture
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BpfMap, int]]:
    """A ring buffer of 4096 bytes, and a program that writes one record into it: the mark of the packet it runs on."""
    directory = tmp_path_factory.mktemp("writer")
    (directory / "writer.bpf.c").write_text(WRITER)
    headers = [f"-I{path}" for path in hatch_build.multiarch_headers()]
    command = [hatch_build.clang(), "-O2", "-g", "-target", "bpf", "-mcpu=v3", *headers, "-c"]
    subprocess.run([*command, "writer.bpf.c", "-o", "writer.bpf.o"], check=True, timeout=30, cwd=directory)
    with contextlib.closing(libbpf.BpfObject(directory / "writer.bpf.o")) as opened:
        opened.load()
        ring, program = opened.map("ring"), opened.programs()["write"]
    yield ring, program
    ring.close()
    os.close(program)


def write(program: int, mark: int) -> int:
    verdict, _, _ = libbpf.run(program, bytes(64), bytes(PacketContext(mark=mark)))
    return verdict


def test_records_come_in_order_and_the_descriptor_tells_of_them(writer: tuple[BpfMap, int]):
    ring, program = writer
    with contextlib.closing(RingBuffer(ring)) as buffer:
        assert buffer.consume(unexpected) == 0
        assert not is_readable(buffer.fileno())
        for mark in range(5):
            assert write(program, mark) == 0
        assert is_readable(buffer.fileno())
        seen: list[bytes] = []
        assert buffer.consume(seen.append) == 5
        assert [struct.unpack("=I", record)[0] for record in seen] == list(range(5))
        assert not is_readable(buffer.fileno())


def test_what_the_reader_raises_comes_out_after_all_have_been_read(writer: tuple[BpfMap, int]):
    ring, program = writer
    with contextlib.closing(RingBuffer(ring)) as buffer:
        for mark in range(4):
            write(program, mark)
        seen: list[int] = []

        def read(record: bytes) -> None:
            (mark,) = struct.unpack("=I", record)
            seen.append(mark)
            if mark in (1, 2):
                raise ValueError(mark)

        with pytest.raises(ValueError, match="1"):
            buffer.consume(read)
        assert seen == [0, 1, 2, 3]
        assert buffer.consume(unexpected) == 0


def test_a_full_ring_takes_no_more_until_it_is_read(writer: tuple[BpfMap, int]):
    ring, program = writer
    with contextlib.closing(RingBuffer(ring)) as buffer:
        verdicts = [write(program, mark) for mark in range(300)]
        assert verdicts[0] == 0
        assert verdicts[-1] == -errno.EAGAIN
        seen: list[bytes] = []
        buffer.consume(seen.append)
        assert len(seen) == verdicts.count(0)
        assert write(program, 1) == 0


def test_an_edge_triggered_reader_is_told_of_every_record(writer: tuple[BpfMap, int]):
    ring, program = writer
    records = 100_000
    with contextlib.closing(RingBuffer(ring)) as buffer, contextlib.closing(select.epoll()) as poll:
        poll.register(buffer.fileno(), select.EPOLLIN | select.EPOLLET)
        child = os.fork()
        if not child:
            for mark in range(records):
                while write(program, mark):
                    pass
            os._exit(0)
        seen: list[bytes] = []
        try:
            while len(seen) < records:
                assert poll.poll(2), f"nothing is told after {len(seen)} of {records} records"
                buffer.consume(seen.append)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert [struct.unpack("=I", record)[0] for record in seen] == list(range(records))
