"""What is read from /proc about processes."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks import machine

_SPIN = "import time\nwhile time.process_time() < 0.3: pass"


def test_a_tree_has_the_children_of_children():
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; read _"], stdin=-1, stdout=-1) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        sleeper = int(shell.stdout.readline())
        try:
            assert {shell.pid, sleeper} <= set(machine.tree([os.getpid()]))
            assert set(machine.tree([shell.pid])) == {shell.pid, sleeper}
        finally:
            os.kill(sleeper, 9)


def test_processor_time_includes_ended_children():
    before = machine.processor_seconds([os.getpid()])
    subprocess.run([sys.executable, "-c", _SPIN], check=True)
    assert machine.processor_seconds([os.getpid()]) - before >= 0.25


def test_memory_that_is_touched_is_resident():
    before, proportional = machine.resident_set_bytes(os.getpid()), machine.resident_bytes([os.getpid()])
    block = bytearray(os.urandom(1 << 20)) * 32
    assert machine.resident_set_bytes(os.getpid()) - before >= len(block) * 0.9
    assert machine.resident_bytes([os.getpid()]) - proportional >= len(block) * 0.9
