from __future__ import annotations

import dataclasses
import queue
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msocks.store.noted_records import MOST_BYTES, NotedRecords
from msocks.store.sessions import MemorySessions, SqliteSessions, StoredSession, _row, noted_path
from msocks.store.state_directory import StoreError
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId

Troubles = queue.SimpleQueue[StoreError | None]


def record(number: int = 1, user: str = "alice", generation: int = 1) -> StoredSession:
    return StoredSession(
        session=SessionId(number.to_bytes(16, "big")),
        user=user,
        user_fingerprint=bytes(32),
        association=AssociationId(bytes([9] * 16)),
        destination=Endpoint.parse("server.example:443"),
        opened_at=1_000_000.5,
        generation=generation,
        up_from=2**40,
        down_from=7,
        identity=number.to_bytes(44, "big"),
    )


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.sqlite"


@pytest.fixture
def troubles() -> Troubles:
    return queue.SimpleQueue()


@pytest.fixture
def store(path: Path, troubles: Troubles) -> Iterator[SqliteSessions]:
    made = SqliteSessions(path, troubles.put)
    assert made.load() == []
    yield made
    made.close()


def found_later(path: Path) -> list[StoredSession]:
    """What the next process reads, while the first has the file open still: it was killed."""
    other = SqliteSessions(path, lambda _: None)
    try:
        return sorted(other.load(), key=lambda each: each.session.value)
    finally:
        other.close()


def test_what_is_durable_is_found_by_another_process(store: SqliteSessions, path: Path):
    records = [record(number) for number in range(1, 6)]
    for each in records:
        store.put(each)
    eventually(lambda: all(store.is_durable(each.key) for each in records))
    assert found_later(path) == records
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


KILLED = """
import os, signal, sqlite3, sys
sys.path.insert(0, sys.argv[2])
from tests.store.test_sessions import record
from msocks.store.sessions import SqliteSessions
store = SqliteSessions(__import__("pathlib").Path(sys.argv[1]), lambda _: None)
store.load()
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
for generation in (1, 2):
    store.put(record(1, generation=generation))
store.note(record(2))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_before_its_writer_has_come_to_them_leaves_the_records(path: Path):
    command = [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parents[2])]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
    database.close()
    expected = [record(1, generation=2), record(2)]
    store = SqliteSessions(path, lambda _: None)
    assert sorted(store.load(), key=lambda each: each.session.value) == expected
    eventually(lambda: all(store.is_durable(each.key) for each in expected))
    store.close()
    assert noted_path(path).stat().st_size == 0
    assert found_later(path) == expected


def test_what_was_noted_is_forgotten_once_the_database_has_it(store: SqliteSessions, path: Path):
    assert stat.S_IMODE(noted_path(path).stat().st_mode) == 0o600
    for number in range(1, 50):
        store.put(record(number))
    eventually(lambda: noted_path(path).stat().st_size == 0)
    assert len(found_later(path)) == 49


def test_what_is_only_noted_is_kept_until_it_is_put(store: SqliteSessions, path: Path):
    store.put(record(2))
    store.note(record(1))
    eventually(lambda: store.is_durable(record(2).key))
    time.sleep(0.1)
    assert noted_path(path).stat().st_size > 0
    store.put(record(1))
    eventually(lambda: noted_path(path).stat().st_size == 0)
    assert found_later(path) == [record(1), record(2)]


@pytest.mark.parametrize(
    "spoilt", [b"[1, 2", b'["another", "version"]\n', b"\xff\x00\n", b"7\n", b'[{"hex": "xy"}]\n', b'[{"a": 1}]\n']
)
def test_a_line_that_cannot_be_read_spoils_no_other(path: Path, spoilt: bytes):
    noted = NotedRecords(noted_path(path))
    noted.note(_row(record(1)))
    with noted_path(path).open("ab") as file:
        file.write(spoilt)
    noted.note(_row(record(2)))
    noted.close()
    assert found_later(path) == [record(1), record(2)]


def test_a_note_that_is_older_than_the_database_counts_for_nothing(path: Path):
    store = SqliteSessions(path, lambda _: None)
    store.load()
    store.put(record(1, generation=3))
    store.close()
    noted = NotedRecords(noted_path(path))
    noted.note(_row(record(1, generation=2)))
    noted.close()
    assert found_later(path) == [record(1, generation=3)]


def test_the_file_of_notes_does_not_grow_without_bound(path: Path):
    noted = NotedRecords(noted_path(path))
    for _ in range(MOST_BYTES // 100_000 + 2):
        noted.note(("x" * 100_000, b"y", 1, 2.5))
    assert MOST_BYTES - 200_000 < noted_path(path).stat().st_size <= MOST_BYTES
    assert next(noted.rows())[1:] == (b"y", 1, 2.5)
    noted.clear()
    assert (list(noted.rows()), noted_path(path).stat().st_size) == ([], 0)
    noted.close()


def test_a_later_leg_replaces_the_record_and_the_end_removes_it(store: SqliteSessions, path: Path):
    store.put(record(1))
    store.put(record(2))
    store.put(record(1, generation=2))
    store.forget(record(2).key)
    eventually(lambda: store.is_durable(record(1).key))
    assert found_later(path) == [record(1, generation=2)]
    assert not store.is_durable(record(2).key)


def test_two_users_may_have_the_same_id(store: SqliteSessions, path: Path):
    store.put(record(1))
    store.put(dataclasses.replace(record(1, user="bob"), identity=b"another"))
    store.forget(record(1).key)
    eventually(lambda: store.is_durable(record(1, user="bob").key))
    assert [each.user for each in found_later(path)] == ["bob"]


def test_closing_writes_what_is_left(path: Path):
    store = SqliteSessions(path, lambda _: None)
    store.load()
    for number in range(1, 200):
        store.put(record(number))
    store.close()
    assert len(found_later(path)) == 199


def test_nobody_waits_while_somebody_else_has_the_file(store: SqliteSessions, path: Path, troubles: Troubles):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    store.put(record())
    assert time.monotonic() - began < 0.5
    trouble = troubles.get(timeout=20)
    assert trouble is not None
    assert "locked" in trouble.what
    assert "close what has the file open" in trouble.remedy
    assert not store.is_durable(record().key)
    other.execute("ROLLBACK")
    other.close()
    assert troubles.get(timeout=20) is None
    assert store.is_durable(record().key)
    assert found_later(path) == [record()]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda content: b"not a database" * 1000, "not a database"),
        (lambda content: content[:4096] + bytes(len(content) - 4096), "malformed|disk image|sessions"),
    ],
    ids=["other", "zeroed"],
)
def test_a_damaged_file_is_refused_with_the_remedy_and_left_alone(
    path: Path, damage: Callable[[bytes], bytes], what: str
):
    store = SqliteSessions(path, lambda _: None)
    store.load()
    for number in range(1, 200):
        store.put(record(number))
    store.close()
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(StoreError, match=f"({what}).*(--store *memory|move the file away)"):
        SqliteSessions(path, lambda _: None).load()
    assert path.read_bytes() == damaged


def test_a_row_that_cannot_be_is_damage(path: Path):
    store = SqliteSessions(path, lambda _: None)
    store.load()
    store.put(record())
    store.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE sessions SET destination = 'nowhere'")
    database.close()
    again = SqliteSessions(path, lambda _: None)
    with pytest.raises(StoreError, match=r"nowhere.*--store *memory"):
        again.load()
    again.close()


@pytest.mark.parametrize("made_by", ["a newer msocks", "another program"])
def test_a_file_of_somebody_else_is_refused(path: Path, made_by: str):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE sessions (x)")
        if made_by == "a newer msocks":
            database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="newer msocks" if "newer" in made_by else "not a database of msocks sessions"):
        SqliteSessions(path, lambda _: None)


ON_A_FULL_DISK = """
import pathlib, queue, sys
sys.path.insert(0, sys.argv[2])
from tests.store.test_sessions import record
from msocks.store.sessions import SqliteSessions
directory = pathlib.Path(sys.argv[1])
troubles = queue.SimpleQueue()
store = SqliteSessions(directory / "sessions.sqlite", troubles.put)
store.load()
filler = directory / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
for number in range(1, 400):
    store.put(record(number))
trouble = troubles.get(timeout=20)
print(trouble)
filler.unlink()
assert troubles.get(timeout=20) is None
assert all(store.is_durable(record(number).key) for number in range(1, 400))
store.close()
"""


def test_a_full_disk_is_told_and_recovered_from(tmp_path: Path):
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    root = Path(__file__).parents[2]
    command = ["unshare", "-m", "sh", "-c", mount, "-", str(tmp_path), sys.executable, ON_A_FULL_DISK, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "disk is full; make room on the disk" in done.stdout


def test_records_in_memory_do_not_outlive_the_process(tmp_path: Path):
    store = MemorySessions()
    store.note(record())
    store.put(record())
    store.forget(record().key)
    assert not store.is_durable(record().key)
    assert store.load() == []
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_the_writer_ends_with_the_store(path: Path):
    before = threading.active_count()
    store = SqliteSessions(path, lambda _: None)
    store.load()
    store.put(record())
    store.close()
    assert threading.active_count() == before
