from __future__ import annotations

import datetime
import hashlib
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from msocks.errors import ConfigurationError
from msocks.store.state_directory import StoreError
from msocks.store.users import PasswordHash, UserStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[UserStore]:
    made = UserStore(path, create=True)
    yield made
    made.close()


def test_a_new_user_has_a_secret_of_their_own(store: UserStore):
    alice, bob = store.add("alice"), store.add("bob")
    assert len(alice) == 32
    assert store.secret_matches("alice", alice)
    assert not store.secret_matches("alice", bob)
    assert not store.secret_matches("bob", alice)
    assert not store.secret_matches("nobody", bytes(32))


def test_a_name_that_is_taken_is_refused_and_nothing_is_lost(store: UserStore):
    secret = store.add("alice")
    with pytest.raises(ConfigurationError, match=r"already a user alice.*msocks user remove alice"):
        store.add("alice")
    assert store.secret_matches("alice", secret)


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "line\nbreak"])
def test_names_that_nobody_may_have(store: UserStore, name: str):
    with pytest.raises(ConfigurationError):
        store.add(name)
    assert store.users() == []


def test_users_are_listed_by_name_with_what_the_operator_may_know(store: UserStore):
    store.add("bob", max_sessions=5, max_channels=2)
    store.add("alice")
    store.set_password("alice", "sesame")
    alice, bob = store.users()
    assert (alice.name, alice.has_password, alice.max_sessions, alice.max_channels) == ("alice", True, None, None)
    assert (bob.name, bob.has_password, bob.max_sessions, bob.max_channels) == ("bob", False, 5, 2)
    age = datetime.datetime.now(datetime.UTC) - alice.created_at
    assert datetime.timedelta(seconds=-1) < age < datetime.timedelta(seconds=5)


def test_a_removed_user_is_gone(store: UserStore):
    secret = store.add("alice")
    store.remove("alice")
    assert not store.secret_matches("alice", secret)
    assert store.find("alice") is None
    assert store.fingerprint("alice") is None
    with pytest.raises(ConfigurationError, match="no user alice"):
        store.remove("alice")


def test_a_user_who_is_added_again_is_another_one(store: UserStore):
    store.add("alice")
    before = store.fingerprint("alice")
    store.remove("alice")
    store.add("alice")
    assert store.fingerprint("alice") != before


def test_passwords(store: UserStore):
    store.add("alice")
    assert store.password_hash("alice") is None
    assert not store.has_passwords()
    store.set_password("alice", "grün")
    hashed = store.password_hash("alice")
    assert hashed is not None
    assert hashed.matches("grün".encode())
    assert not hashed.matches(b"gr\xfcn")
    assert not hashed.matches(b"")
    assert store.has_passwords()
    store.set_password("alice", None)
    assert store.password_hash("alice") is None
    with pytest.raises(ConfigurationError, match="no user bob"):
        store.set_password("bob", "x")


@pytest.mark.parametrize("password", ["", "ä" * 128])
def test_passwords_that_socks_cannot_carry(store: UserStore, password: str):
    store.add("alice")
    with pytest.raises(ConfigurationError, match="1 to 255 bytes"):
        store.set_password("alice", password)


def test_equal_passwords_have_different_hashes():
    assert PasswordHash.of(b"x") != PasswordHash.of(b"x")


def test_only_hashes_are_at_rest(store: UserStore, path: Path):
    secret = store.add("alice")
    store.set_password("alice", "correct horse")
    store.close()
    content = b"".join(each.read_bytes() for each in path.parent.iterdir())
    assert hashlib.sha256(secret).digest() in content
    assert secret not in content
    assert b"correct horse" not in content
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in path.parent.iterdir())


def test_another_connection_sees_changes_and_is_told_by_the_version(store: UserStore, path: Path):
    other = UserStore(path)
    version = other.version()
    assert other.version() == version
    secret = store.add("alice")
    assert other.version() != version
    assert other.secret_matches("alice", secret)
    other.close()


def test_opening_again_keeps_everything(store: UserStore, path: Path):
    secret = store.add("alice")
    store.close()
    again = UserStore(path, create=True)
    assert again.secret_matches("alice", secret)
    again.close()


def test_a_missing_database_is_not_created_unasked(path: Path):
    with pytest.raises(StoreError):
        UserStore(path)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("content", [b"this is no database, but a text that is long enough\n" * 100, b"\0" * 5000])
def test_a_damaged_file_is_named_and_not_touched(path: Path, content: bytes, create: bool):
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"users\.sqlite.*not changed"):
        UserStore(path, create=create)
    assert path.read_bytes() == content


def test_a_newer_schema_is_named_and_not_touched(store: UserStore, path: Path):
    store.add("alice")
    store.close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(StoreError, match=r"newer msocks.*update msocks"):
        UserStore(path, create=True)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT name FROM users").fetchall() == [("alice",)]
    database.close()


def test_somebody_elses_database_is_not_touched(path: Path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE guests (name)")
    database.close()
    with pytest.raises(StoreError, match="not a database of msocks users"):
        UserStore(path, create=True)


def test_a_database_that_is_locked_for_long_is_named(store: UserStore, path: Path, monkeypatch):
    monkeypatch.setattr("msocks.store.users._BUSY_TIMEOUT_S", 0.05)
    impatient = UserStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StoreError, match=r"locked.*try again"):
            impatient.add("alice")
    finally:
        other.execute("ROLLBACK")
        other.close()
    impatient.add("alice")
    impatient.close()
