"""What an agent leaves to the next: the list of its sessions, and a flow's memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msocks.agent.flow_memory import FlowMemory
from msocks.agent.open_sessions import OpenSessions
from msocks.values.ids import SessionId


def test_sessions_that_are_open_are_found_by_the_next_agent(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    first = OpenSessions(path, 3)
    assert first.left == ()
    sessions = [SessionId.generate() for _ in range(5)]
    for session in sessions:
        first.add(session)  # two are too many, which does no harm
    first.discard(sessions[1])
    first.discard(sessions[4])
    with pytest.raises(BlockingIOError):
        OpenSessions(path, 3)
    first.close()
    second = OpenSessions(path, 8)
    assert set(second.left) == {sessions[0], sessions[2]}
    second.discard(sessions[0])
    second.close()
    assert OpenSessions(path, 1).left == (sessions[2],)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_another_kind_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    path.write_bytes(b"something else" * 100)
    assert OpenSessions(path, 3).left == ()


def test_a_record_is_the_last_that_was_written_whole() -> None:
    memory = FlowMemory()
    copy = os.dup(memory.descriptor)
    for number in range(3):
        memory.write({"number": number})
    with pytest.raises(ValueError, match="a record of"):
        memory.write({"text": "x" * 5000})
    ring = memory.ring(None)
    ring.append(b"up")
    ring.release(1)
    memory.let_go()
    found = FlowMemory(copy)
    assert (found.read(), found.base) == ({"number": 2}, 1)


@pytest.mark.parametrize("change", ["size", "version"])
def test_memory_of_another_version_is_refused(change: str) -> None:
    memory = FlowMemory()
    copy = os.dup(memory.descriptor)
    if change == "size":
        os.ftruncate(copy, 1000)
    else:
        os.pwrite(copy, b"MSOCKSF9", 0)
    memory.let_go()
    with pytest.raises(ValueError, match="another"):
        FlowMemory(copy)
