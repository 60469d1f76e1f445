"""One short storm on each datapath; `make chaos` goes on for an hour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(("datapath", "seed"), [("splice", 23), pytest.param("relay", 12, marks=pytest.mark.long)])
def test_every_session_of_a_storm_is_as_it_had_to_be(datapath: str, seed: int, tmp_path: Path) -> None:
    words = ["--minutes", "0", "--seconds", "8", "--sessions", "4", "--seed", str(seed), "--datapath", datapath]
    argv = [sys.executable, "chaos/main.py", *words, "--output", str(tmp_path / "chaos.json")]
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
