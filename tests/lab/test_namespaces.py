"""What tests in this process get of their own, and that they come back from it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path

from tests import bpf_maps
from tests.own_network import own_bpffs, own_network


def mount_namespace() -> str:
    return str(Path("/proc/thread-self/ns/mnt").readlink())


def test_pins_are_the_tests_own_and_go_with_it(tmp_path: Path):
    home, directory = mount_namespace(), Path.cwd()
    with own_network(), own_bpffs() as pins:
        inside = mount_namespace()
        assert inside != home
        kept = bpf_maps.pin_new_map(pins / "kept")
        assert "kept" in subprocess.check_output(["ls", pins], text=True).split()
        (tmp_path / "file").write_text("seen outside")
        assert bpf_maps.map_exists(kept)
    assert (mount_namespace(), Path.cwd()) == (home, directory)
    assert not (pins / "kept").exists()
    assert (tmp_path / "file").read_text() == "seen outside"
    for _ in range(500):
        if not bpf_maps.map_exists(kept):
            break
        threading.Event().wait(0.01)
    assert not bpf_maps.map_exists(kept)


def test_the_way_back_is_open_whatever_was_started_meanwhile():
    home = mount_namespace()
    leave, seen = threading.Event(), []

    def stay() -> None:
        seen.append(mount_namespace())
        leave.wait(20)

    before = threading.Thread(target=stay)
    before.start()
    meanwhile = threading.Thread(target=stay)
    with contextlib.suppress(ZeroDivisionError), own_bpffs() as pins:
        with own_bpffs():
            bpf_maps.pin_new_map(pins / "inner")
        assert not (pins / "inner").exists()
        meanwhile.start()
        raise ZeroDivisionError
    assert mount_namespace() == home
    leave.set()
    for thread in (before, meanwhile):
        thread.join()
    assert seen[0] == home
    assert seen[1] != home
