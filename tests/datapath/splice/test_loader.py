"""The splice comes into the kernel, outlives its process there, is adopted, and goes without a trace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import hatch_build
import pytest
from tests.bpf_maps import pin_new_map
from tests.datapath.splice.loading import SLOTS, loaded, own_host
from tests.own_network import own_bpffs, own_network

from msocks.datapath.splice import discarding, libbpf, loader
from msocks.datapath.splice.firewall import Firewall, table_name
from msocks.datapath.splice.hooks import Hooks
from msocks.datapath.splice.layout import MARK_OF_DAEMON
from msocks.datapath.splice.libbpf import BpfError, BpfObject
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.proxy.datapath_choice import pin_directory


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
    source, built = directory / "table.bpf.c", directory / "table.bpf.o"
    source.write_text(SOURCE.format(**PLAIN | changes))
    headers = [f"-I{path}" for path in hatch_build.multiarch_headers()]
    command = [hatch_build.clang(), "-O2", "-g", "-target", "bpf", *headers, "-c", str(source), "-o", str(built)]
    subprocess.run(command, check=True, timeout=30)
    with contextlib.closing(BpfObject(built)) as opened:
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
        assert not firewall.present()
        assert filters_of("uplink") == ""
        assert names(others) == {"table"}
        discarding.discard(pins)  # nothing there: no-op


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


def test_a_directory_that_is_on_no_bpf_file_system_is_refused(tmp_path: Path):
    with own_network(), own_bpffs(), pytest.raises(BpfError, match="cannot pin"):
        loader.load(tmp_path / "pins", slots=SLOTS)


def test_a_file_that_is_no_object_is_named(tmp_path: Path):
    path = tmp_path / "object.o"
    path.write_text("no ELF")
    with pytest.raises(BpfError, match=r"object\.o is no BPF object"):
        BpfObject(path)
