"""Servers that speak first, as those of ssh and mail do: nobody waits for a time-out because of the switch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.end_to_end.conftest import PORT, Field
from tests.end_to_end.splice_fixtures import spliced

from msocks_lab.process import python_argv

__all__ = ["spliced"]

CLIENT = str(Path(__file__).with_name("banner_client.py"))
LONGEST_S = 0.150  # a time-out of the kernel's is 200 ms or more


def waits(field: Field, port: int, connections: int, at_a_time: int, size: int) -> list[float]:
    argv = [sys.executable, CLIENT, str(PORT), field.lab.server.ipv4, str(port), str(connections), str(at_a_time)]
    done = field.lab.mobile.run([*argv, str(size)], timeout=100)
    found: list[float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("size", "port"), [(40, 7101), (100_000, 7102)])
def test_no_banner_waits_for_a_time_out(spliced: Field, size: int, port: int) -> None:
    lab = spliced.lab
    lab.server.popen(python_argv("msocks_lab.pattern_server", "--port", str(port), "--banner", str(size)))
    lab.server.wait_listening(port)
    load = spliced.transfer("--download", "400000000", "--upload", "400000000", "--rate", "20000000")
    load.wait_for(1_000_000)
    connections = 1000 if size < 1000 else 100
    found = sorted(waits(spliced, port, connections, 16, size))
    assert load.process.poll() is None
    load.process.stop()
    assert len(found) == connections
    assert found[-1] < LONGEST_S, f"{[round(wait, 3) for wait in found[-10:]]}"
    spliced.carried()
