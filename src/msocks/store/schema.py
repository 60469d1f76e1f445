"""What a file of the store is: an SQLite database of one kind and version, made where it is missing or empty."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from msocks.store.state_directory import StoreError


@dataclass(frozen=True, slots=True)
class Schema:
    """One kind of database.

    Attributes:
        application_id: PRAGMA application_id: which program's file it is, and which of its files.
        version: PRAGMA user_version; at least 1.
        statement: Makes its table.
        holds: What it is a database of.
        way_out: What helps where the file is from a newer version.
    """

    application_id: int
    version: int
    statement: str
    holds: str
    way_out: str = "update msocks"

    def open(self, database: sqlite3.Connection, path: Path, *, create: bool) -> None:
        """Have the database be of this kind; `create` makes an empty one so. Another's file is not changed.

        Raises:
            StoreError: It is another's, or of a newer version.
            sqlite3.Error: It cannot be used.
        """
        version = _pragma(database, "user_version")
        if version == 0 and create:
            self._create(database)
            version = _pragma(database, "user_version")
        if version > self.version:
            raise StoreError(
                f"{path} was written by a newer msocks (schema {version}, known here: {self.version})",
                remedy=f"{self.way_out}; the file was not changed",
            )
        if version != self.version or _pragma(database, "application_id") != self.application_id:
            raise StoreError(
                f"{path} is not a database of msocks {self.holds}",
                remedy="give the right state directory, or move the file away; it was not changed",
            )

    def _create(self, database: sqlite3.Connection) -> None:
        if not _is_empty(database):
            return
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN IMMEDIATE")
        if _is_empty(database):  # another process may have been faster
            database.execute(self.statement)
            database.execute(f"PRAGMA application_id = {self.application_id}")
            database.execute(f"PRAGMA user_version = {self.version}")
        database.execute("COMMIT")


def _is_empty(database: sqlite3.Connection) -> bool:
    return not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])
