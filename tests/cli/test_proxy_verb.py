"""``msocks proxy`` on a state directory whose session records cannot be used."""

from __future__ import annotations

import subprocess

from tests.cli.conftest import MSOCKS, CommandLine

OPTIONS = ("--listen", "127.0.0.1:0", "--state", "state", "--datapath", "relay")


def test_damaged_session_records_stop_the_proxy_with_the_remedy_which_works(msocks: CommandLine):
    msocks("user", "add", "alice", "--state", "state", "--address", "192.0.2.1:1080")
    records = msocks.directory / "state" / "sessions.sqlite"
    records.write_bytes(b"no database at all" * 1000)
    done = msocks("proxy", *OPTIONS)
    assert (done.returncode, done.stdout) == (1, "")
    assert "sessions.sqlite cannot be used: file is not a database" in done.stderr
    assert "move it away, together with sessions.sqlite-wal" in done.stderr
    assert "--store memory" in done.stderr
    assert records.read_bytes() == b"no database at all" * 1000
    command = [*MSOCKS, "proxy", *OPTIONS, "--store", "memory"]
    with subprocess.Popen(command, cwd=msocks.directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.terminate()
        assert running.wait(10) == 0
