"""The splice comes into the kernel, outlives its process there, is adopted, and goes without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hatch_build
import pytest
from tests.bpf_maps import pin_new_map, program_exists
from tests.datapath.splice.loading import SLOTS, compiled, loaded, own_host
from tests.own_network import own_bpffs, own_network

from msocks.datapath.splice import discarding, libbpf, loader, open_splice
from msocks.datapath.splice.datapath import SpliceDatapath
from msocks.datapath.splice.events import Event, EventType
from msocks.datapath.splice.firewall import Firewall, table_name
from msocks.datapath.splice.hooks import Hooks
from msocks.datapath.splice.layout import LAYOUT_VERSION, MARK_OF_DAEMON, Config, Session, SessionState
from msocks.datapath.splice.libbpf import BpfError, BpfObject, RingBuffer
from msocks.datapath.splice.loader import SpliceProgram
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.proxy.datapath_choice import pin_directory
from msocks.transport.reactor import Reactor


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_tables_are_of_the_size_that_was_asked_for_pinned_mapped_and_go_without_a_trace():
    with own_host() as (network, pins):
        network.add_veth("uplink")
        program = loader.load(pins, slots=48)
        sessions, config = program.map("sessions"), program.map("config")
        assert sessions.max_entries == 48
        assert len(sessions.mmap()) >= 48 * sessions.value_size
        assert names(pins / "maps") == names(pins / "layouts") >= {"sessions", "flows", "events"}
        assert names(pins / "programs") >= {"splice_ingress", "splice_egress"}

        memory = config.mmap()
        memory[0:2] = b"\x12\x34"
        value = config.lookup(bytes(4))
        assert value is not None
        assert value[:2] == b"\x12\x34"

        hooks = Hooks(program)
        hooks.attach_all()
        hooks.close()
        program.unload()
        assert not pins.exists()
        assert not pins.parent.exists()


def test_a_later_process_adopts_the_tables_and_replaces_the_programs():
    with own_host() as (_, pins):
        key, value = bytes(range(36)), bytes(range(12))
        with loaded(pins) as first:
            before = {name: first.map(name).id for name in names(pins / "maps")}
            program = libbpf.program_id(first.program("splice_ingress"))
            first.map("flows").update(key, value)
        with loaded(pins, slots=4 * SLOTS) as second:
            assert {name: second.map(name).id for name in names(pins / "maps")} == before
            assert second.map("flows").lookup(key) == value
            assert second.map("sessions").max_entries == SLOTS, "a table that lives cannot grow"
            assert libbpf.program_id(second.program("splice_ingress")) != program
            pinned = libbpf.open_pin(pins / "programs" / "splice_ingress")
            assert libbpf.program_id(pinned) == libbpf.program_id(second.program("splice_ingress"))
            os.close(pinned)
            assert not [name for name in names(pins / "programs") if name.endswith("_next")]


def test_tables_of_another_layout_are_refused_and_stay():
    with own_host() as (_, pins), loaded(pins) as first:
        for table in ("sessions", "flows"):
            layout = pins / "layouts" / table
            right = layout.readlink()
            layout.unlink()
            layout.symlink_to("0" * 64)
            with pytest.raises(SpliceRefused, match=f"the table {table} .* another version") as refused:
                loader.load(pins, slots=SLOTS)
            assert "msocks doctor --discard-splice-state" in refused.value.remedy
            with contextlib.closing(libbpf.BpfMap(libbpf.open_pin(pins / "maps" / table))) as kept:
                assert kept.id == first.map(table).id
            layout.unlink()
            layout.symlink_to(right)


SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
typedef {number} number;
struct inner {{ {inner} }};
struct value {{ {members} }};
struct {{
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 8);
    __type(key, __u32);
    __type(value, struct value);
}} table SEC(".maps");
SEC("tc") int pass(struct __sk_buff *skb) {{ return {verdict}; }}
char _license[] SEC("license") = "GPL";
"""
PLAIN = {
    "number": "__u32",
    "inner": "__u8 a[4];",
    "members": "number x; __u32 y; struct inner z[2];",
    "verdict": "0",
}


def shape(directory: Path, **changes: str) -> str:
    source = directory / "table.bpf.c"
    source.write_text(SOURCE.format(**PLAIN | changes))
    with contextlib.closing(BpfObject(compiled(source))) as opened:
        return opened.shape("table")


@pytest.mark.parametrize(
    "change",
    [
        {"members": "__u32 y; number x; struct inner z[2];"},
        {"members": "number x; __u32 v; struct inner z[2];"},
        {"members": "number x; __u32 y; struct inner z[1]; __u32 more;"},
        {"inner": "__u8 b[4];"},
        {"inner": "__u16 a[2];"},
        {"number": "__u16"},
    ],
    ids=lambda change: " ".join(change.values()),
)
def test_a_layout_differs_where_memory_does(tmp_path: Path, change: dict[str, str]):
    assert shape(tmp_path) != shape(tmp_path, **change)


def test_a_layout_is_the_same_where_only_the_program_differs(tmp_path: Path):
    assert shape(tmp_path) == shape(tmp_path, verdict="-1", number="unsigned int")


def filters_of(interface: str) -> str:
    command = ["tc", "filter", "show", "dev", interface, "ingress"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


def test_what_a_dead_proxy_left_is_discarded_with_its_filters_and_its_table_and_nobody_elses():
    with own_host() as (network, pins):
        network.add_veth("uplink")
        with loaded(pins) as program:
            hooks = Hooks(program, clsact=True)
            hooks.attach_all()
            hooks.close()
        firewall = Firewall(table_name(pins.name), MARK_OF_DAEMON)
        firewall.install(PortRange(20000, 20010), [1080])
        others = pins.with_name("other")
        others.mkdir()
        pin_new_map(others / "table")
        assert "splice" in filters_of("uplink")
        discarding.discard(pins)
        assert not discarding.is_there(pins)
        assert not asyncio.run(firewall.present())
        assert filters_of("uplink") == ""
        assert names(others) == {"table"}
        discarding.discard(pins)  # nothing there: no-op


async def test_what_cannot_be_opened_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    """The second program that is attached is refused; then everything; with a session in the tables they stay."""
    reactor = Reactor(asyncio.get_running_loop())
    refused: list[int] = []

    def create_link(
        program: int, ifindex: int, attach_type: int, *, real: Callable[..., int] = libbpf.create_link
    ) -> int:
        refused.append(ifindex)
        if len(refused) % 2 == 0:
            raise BpfError(errno.ENOSPC, "no more")
        return real(program, ifindex, attach_type)

    def opened(pins: Path) -> SpliceDatapath:
        return open_splice(reactor, pin_directory=pins, ports=PortRange(20000, 20010), slots=4, half_closed_s=60)

    with own_host() as (network, pins):
        network.add_veth("uplink")
        firewall = Firewall(table_name(pins.name), MARK_OF_DAEMON)
        with monkeypatch.context() as patch:
            patch.setattr(libbpf, "create_link", create_link)
            with pytest.raises(BpfError, match="no more"):
                opened(pins)
        assert not pins.exists()
        assert not await firewall.present()
        with monkeypatch.context() as patch:
            patch.setenv("PATH", "/nowhere")
            with pytest.raises(SpliceRefused, match="nft is missing"):
                opened(pins)
        assert not pins.exists()
        datapath = opened(pins)
        slot = datapath.tables.take_slot()
        assert slot is not None
        datapath.tables.session(slot).state = SessionState.OPEN
        datapath.close()
        with monkeypatch.context() as patch:
            patch.setenv("PATH", "/nowhere")
            with pytest.raises(SpliceRefused, match="nft is missing"):
                opened(pins)
        assert {"maps", "programs", "links"} <= names(pins)
        assert names(pins / "links")
    reactor.close()


def test_msocks_doctor_discards_what_the_proxy_of_a_state_directory_left(tmp_path: Path):
    def msocks(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "msocks", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr

    state = tmp_path / "state"
    with own_host():
        status, said = msocks("doctor", "--discard-splice-state", str(state))
        assert (status, "is not the state directory of a proxy" in said) == (4, True)
        assert msocks("user", "add", "alice", "--state", str(state), "--address", "192.0.2.1:1080")[0] == 0
        assert msocks("doctor", "--discard-splice-state", str(state)) == (0, "there was nothing to remove\n")
        with loaded(pin_directory(state)):
            assert msocks("doctor", "--discard-splice-state", str(state)) == (0, "removed\n")
        assert not pin_directory(state).exists()


def test_a_directory_that_is_on_no_bpf_file_system_is_refused_and_not_made(tmp_path: Path):
    with own_network(), own_bpffs(), pytest.raises(SpliceRefused, match="no BPF file system") as refused:
        loader.load(tmp_path / "msocks" / "pins", slots=SLOTS)
    assert "mount -t bpf bpf /sys/fs/bpf" in refused.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_loaded_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    source = tmp_path / "refused.bpf.c"
    source.write_text(SOURCE.format(**PLAIN | {"verdict": "*(int *)(long)skb->len"}))
    monkeypatch.setattr(loader, "OBJECT", compiled(source))
    with own_host() as (_, pins):
        with pytest.raises(BpfError, match="does not take the splice's programs") as refused:
            loader.load(pins, slots=SLOTS)
        assert "invalid mem access" in str(refused.value)
        assert refused.value.log
        assert not pins.parent.exists()


def test_tables_whose_layout_has_another_version_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    sources = hatch_build.ROOT / hatch_build.SPLICE / "bpf"
    shutil.copytree(sources, tmp_path / "bpf")
    header = tmp_path / "bpf" / "layout.h"
    text = header.read_text()
    define = f"#define LAYOUT_VERSION {LAYOUT_VERSION}\n"
    assert define in text

    def version(number: int) -> None:
        header.write_text(text.replace(define, f"#define LAYOUT_VERSION {number}\n"))
        monkeypatch.setattr(loader, "OBJECT", compiled(tmp_path / "bpf" / "splice.bpf.c"))

    with own_host() as (_, pins):
        version(1)
        loader.load(pins, slots=SLOTS).close()
        loader.load(pins, slots=SLOTS).close()
        version(2)
        with pytest.raises(SpliceRefused, match="another version"):
            loader.load(pins, slots=SLOTS)
        version(1)
        loader.load(pins, slots=SLOTS).close()


# -- what expires ------------------------------------------------------------------------------------------------------


def expires(program: SpliceProgram) -> bool:
    """Whether the kernel frees the entry of a session that nobody has used, within five seconds."""
    settings = Config.from_buffer(program.map("config").mmap())
    settings.slots = SLOTS
    settings.opening_ns = 1
    session = Session.from_buffer(program.map("sessions").mmap())
    with contextlib.closing(RingBuffer(program.map("events"))) as events, select.epoll() as poll:
        poll.register(events.fileno(), select.EPOLLIN)
        session.last_ns = 1
        session.state = SessionState.OPENING
        if not poll.poll(5):
            return False
        told: list[bytes] = []
        events.consume(told.append)
        assert [Event.from_buffer_copy(record).type for record in told] == [EventType.FREED]
    return session.state == SessionState.FREE


def test_what_nobody_uses_expires_also_when_the_process_is_gone_or_another_has_come():
    with own_host() as (_, pins):
        with loaded(pins) as first:
            assert expires(first)
            earlier = [libbpf.program_id(first.program(name)) for name in names(pins / "programs")]
            Session.from_buffer(first.map("sessions").mmap()).state = SessionState.OPENING
        with contextlib.closing(libbpf.BpfMap(libbpf.open_pin(pins / "maps" / "sessions"))) as sessions:
            assert within(5, lambda: Session.from_buffer(sessions.mmap()).state == SessionState.FREE)
        with loaded(pins) as second:
            # The record of what went meanwhile.
            with contextlib.closing(RingBuffer(second.map("events"))) as events:
                assert events.consume(lambda _record: None) == 1
            assert expires(second)
            assert within(5, lambda: not any(program_exists(number) for number in earlier)), "the timer is an old one's"
            assert expires(second)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)  # the kernel tells nobody
    return True


def test_a_file_that_is_no_object_is_named(tmp_path: Path):
    path = tmp_path / "object.o"
    path.write_text("no ELF")
    with pytest.raises(BpfError, match=r"object\.o is no BPF object"):
        BpfObject(path)
