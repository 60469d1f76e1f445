"""What the next proxy has to know of the sessions that the kernel goes on carrying when this one dies.

A record says whose a session is. What changes with every packet is in the splice's pinned tables, and is learnt from
there; so a record is written when a leg begins to carry its session, and removed when the session ends. Plain SOCKS5
clients have none: nobody could reconnect their sessions.

`SqliteSessions` writes from a thread of its own, all that has come meanwhile in one transaction. Nobody waits for it,
and a disk that is slow or full stops no session. It need not outlive a crash of the host, with which the kernel's
tables go too: a commit has reached the kernel's page cache, and the file system is not asked for more (WAL,
synchronous=NORMAL). Until the thread has come to it a record stands in a file beside, see `noted_records`: a session
whose record were lost with the proxy could not be reconnected.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from msocks.errors import AddressError
from msocks.store.noted_records import NotedRecords
from msocks.store.schema import Schema
from msocks.store.state_directory import StoreError
from msocks.values.endpoint import Endpoint
from msocks.values.ids import AssociationId, SessionId

_SCHEMA = Schema(
    application_id=0x4D534F53,  # "MSOS"
    version=1,
    statement="""
CREATE TABLE sessions (
    user TEXT NOT NULL,
    session BLOB NOT NULL CHECK (length(session) = 16),
    user_fingerprint BLOB NOT NULL,
    association BLOB NOT NULL CHECK (length(association) = 16),
    destination TEXT NOT NULL,
    opened_at REAL NOT NULL,
    generation INTEGER NOT NULL CHECK (generation >= 1),
    up_from INTEGER NOT NULL CHECK (up_from >= 0),
    down_from INTEGER NOT NULL CHECK (down_from >= 0),
    identity BLOB NOT NULL,
    PRIMARY KEY (user, session)
) STRICT, WITHOUT ROWID
""",
    holds="sessions",
    way_out="update msocks, or start with --store memory",
)
_COLUMNS = (
    "user, session, user_fingerprint, association, destination, opened_at, generation, up_from, down_from, identity"
)
_PUT = f"INSERT OR REPLACE INTO sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_FORGET = "DELETE FROM sessions WHERE user = ? AND session = ?"
_BUSY_TIMEOUT_S = 1.0
_RETRY_S = 1.0

Key: TypeAlias = tuple[str, SessionId]


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One record.

    Attributes:
        session: Unique within the user's sessions.
        user: Whose it is.
        user_fingerprint: As `UserStore.fingerprint` gave it: a user of the same name who was added later has another.
        association: Of the client; it names its control channels when they come back.
        destination: What the client asked for.
        opened_at: Seconds since 1970.
        generation: Of the newest leg.
        up_from: A, the offset of the first upstream byte on that leg.
        down_from: D, the same downstream.
        identity: What names the session in the datapath's tables, see `msocks.datapath.interface.Conduit`.
    """

    session: SessionId
    user: str
    user_fingerprint: bytes
    association: AssociationId
    destination: Endpoint
    opened_at: float
    generation: int
    up_from: int
    down_from: int
    identity: bytes

    @property
    def key(self) -> Key:
        """What it is stored under."""
        return self.user, self.session


class SessionStore(Protocol):
    """See the module. Calls come from one thread and return at once, `load` and `close` excepted."""

    def load(self) -> list[StoredSession]:
        """All records, in no order. Raises StoreError where they cannot be read."""

    def note(self, record: StoredSession) -> None:
        """The record outlives this process from now on, if `put` follows in the same turn or the process dies."""

    def put(self, record: StoredSession) -> None:
        """Store a record, in place of an earlier one of the session."""

    def forget(self, key: Key) -> None:
        """The session is over. No-op where it has no record."""

    def is_durable(self, key: Key) -> bool:
        """Whether the newest record of the session would outlive this process."""

    def close(self) -> None:
        """Write what is still to be written, if it can be."""


class MemorySessions:
    """Implements `SessionStore` for those who want nothing on disk: no record outlives the process."""

    def load(self) -> list[StoredSession]:
        return []

    def note(self, record: StoredSession) -> None:
        """Nobody could read it."""

    def put(self, record: StoredSession) -> None:
        """Nobody could read it."""

    def forget(self, key: Key) -> None:
        """Nothing is there."""

    def is_durable(self, key: Key) -> bool:
        del key
        return False

    def close(self) -> None:
        """Nothing is open."""


class SqliteSessions:
    """Implements `SessionStore` by an SQLite database.

    Args:
        path: The file; made, with mode 0600, where it is missing. Beside it lies another, `noted_path`.
        on_trouble: Called from the writing thread: with the reason when records cannot be written any more, and with
            None when they can be again.

    Raises:
        StoreError: The file is damaged, locked for long, or of an unknown version.
    """

    def __init__(self, path: Path, on_trouble: Callable[[StoreError | None], None]) -> None:
        self._path = path
        self._on_trouble = on_trouble
        self._wake = threading.Condition()
        self._pending: dict[Key, StoredSession | None] = {}  # None: to be removed
        self._writing: dict[Key, StoredSession | None] = {}
        self._stored: set[Key] = set()
        self._ahead: StoredSession | None = None  # noted, and not put yet
        self._closing = False
        with self._explained():
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            # Opened here, used by the writer: never by both at a time.
            self._database = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explained():
                self._prepare()
                self._noted = NotedRecords(noted_path(path))
        except BaseException:
            self._database.close()
            raise
        self._writer = threading.Thread(target=self._run, name="session records", daemon=True)

    def load(self) -> list[StoredSession]:
        """As there; to be called once, before everything else."""
        with self._explained():
            rows = self._database.execute(f"SELECT {_COLUMNS} FROM sessions").fetchall()  # noqa: S608
            try:
                records = {record.key: record for record in map(_record, rows)}
            except (ValueError, AddressError) as error:
                raise sqlite3.DatabaseError(str(error)) from None
            self._stored = set(records)
            late = self._not_arrived(records)
        records |= late
        if late:
            with self._wake:
                self._pending |= late
                self._wake_writer()
        return list(records.values())

    def _not_arrived(self, records: dict[Key, StoredSession]) -> dict[Key, StoredSession]:
        """What an earlier process had noted, and its writer had not come to. Raises OSError."""
        late: dict[Key, StoredSession] = {}
        for row in self._noted.rows():
            with contextlib.suppress(ValueError, TypeError, AttributeError, AddressError):  # another version's
                record = _record(row)  # type: ignore[arg-type]
                known = records.get(record.key)
                if known is None or known.generation < record.generation:
                    late[record.key] = record
        return late

    def note(self, record: StoredSession) -> None:
        with self._wake:
            self._ahead = record
            self._noted.note(_row(record))

    def put(self, record: StoredSession) -> None:
        with self._wake:
            self._pending[record.key] = record
            if self._ahead is not record:
                self._noted.note(_row(record))
            self._ahead = None
            self._wake_writer()

    def forget(self, key: Key) -> None:
        with self._wake:
            if key in self._stored:
                self._pending[key] = None
                self._wake_writer()
            else:
                self._pending.pop(key, None)
            self._ahead = None

    def _wake_writer(self) -> None:
        """With the lock. A proxy that has plain SOCKS clients alone never needs the thread, and is quicker without."""
        if self._writer.ident is None:
            self._writer.start()
        self._wake.notify()

    def is_durable(self, key: Key) -> bool:
        with self._wake:
            return key in self._stored and key not in self._pending and key not in self._writing

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._writer.ident is not None:
            self._writer.join()
        self._database.close()
        self._noted.close()

    # -- the writer -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failed = False
        while True:
            with self._wake:
                while not self._pending and not self._closing:
                    self._wake.wait()
                if not self._pending:
                    return
                batch = self._writing = self._pending
                self._pending = {}
                self._stored.update(key for key, record in batch.items() if record is not None)
            try:
                with self._explained():
                    self._write(batch)
            except StoreError as error:
                with self._wake:
                    self._pending = {**batch, **self._pending}
                    self._writing = {}
                if not failed:
                    self._on_trouble(error)
                failed = True
                with self._wake:
                    if self._closing:
                        return
                    self._wake.wait_for(lambda: self._closing, _RETRY_S)
                continue
            with self._wake:
                self._writing = {}
                self._stored.difference_update(key for key, record in batch.items() if record is None)
                if not self._pending and self._ahead is None:
                    with contextlib.suppress(OSError):
                        self._noted.clear()
            if failed:
                failed = False
                self._on_trouble(None)

    def _write(self, batch: dict[Key, StoredSession | None]) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany(_PUT, [_row(record) for record in batch.values() if record is not None])
            gone = [(user, session.value) for (user, session), record in batch.items() if record is None]
            database.executemany(_FORGET, gone)
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                database.execute("ROLLBACK")
            raise

    # -- the file ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        database = self._database
        _SCHEMA.open(database, self._path, create=True)
        database.execute("PRAGMA synchronous = NORMAL")
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(str(found))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            said = str(error)
            if isinstance(error, sqlite3.OperationalError) and "locked" in said:
                remedy = "another process holds it: close what has the file open"
            elif isinstance(error, sqlite3.OperationalError) and "full" in said:
                remedy = "make room on the disk; until then new sessions would not outlive the proxy"
            elif isinstance(error, sqlite3.OperationalError | OSError):
                remedy = "check the state directory, its owner and the space on its disk"
            else:
                remedy = (
                    f"move it away, together with {self._path.name}-wal and -shm where they are, or start with --store "
                    "memory: sessions that the kernel still carries run to their end, but cannot be reconnected; "
                    "it was not changed"
                )
            raise StoreError(f"the session records in {self._path} cannot be used: {said}", remedy=remedy) from None


def noted_path(path: Path) -> Path:
    """Where the records are noted that are on their way into the database at `path`."""
    return path.with_suffix(".noted")


def _row(record: StoredSession) -> tuple[object, ...]:
    return (
        record.user,
        record.session.value,
        record.user_fingerprint,
        record.association.value,
        str(record.destination),
        record.opened_at,
        record.generation,
        record.up_from,
        record.down_from,
        record.identity,
    )


def _record(row: tuple[str, bytes, bytes, bytes, str, float, int, int, int, bytes]) -> StoredSession:
    user, session, fingerprint, association, destination, opened_at, generation, up_from, down_from, identity = row
    return StoredSession(
        session=SessionId(session),
        user=user,
        user_fingerprint=fingerprint,
        association=AssociationId(association),
        destination=Endpoint.parse(destination),
        opened_at=opened_at,
        generation=generation,
        up_from=up_from,
        down_from=down_from,
        identity=identity,
    )
