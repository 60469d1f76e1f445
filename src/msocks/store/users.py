"""Who may use the proxy: an SQLite database that holds hashes, never a secret.

An access link's secret is 32 random bytes, so its SHA-256 tells nothing about it; a SOCKS password is chosen by a
person, so it is hashed with scrypt (RFC 7914).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import os
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msocks.errors import ConfigurationError
from msocks.store.schema import Schema
from msocks.store.state_directory import StoreError
from msocks.values.access_link import SECRET_BYTES
from msocks.values.user_name import check_user_name

_SCHEMA = Schema(
    application_id=0x4D534F43,  # "MSOC"
    version=1,
    statement="""
CREATE TABLE users (
    name TEXT PRIMARY KEY NOT NULL,
    secret_sha256 BLOB NOT NULL CHECK (length(secret_sha256) = 32),
    password_salt BLOB,
    password_scrypt BLOB,
    created_at INTEGER NOT NULL,
    max_sessions INTEGER CHECK (max_sessions >= 0),
    max_channels INTEGER CHECK (max_channels >= 0)
) STRICT, WITHOUT ROWID
""",
    holds="users",
)
_BUSY_TIMEOUT_S = 5.0

MAX_PASSWORD_BYTES = 255
"""RFC 1929 section 2: the length of a password is one byte."""

# 16 MiB and some 40 ms for one password; hashes of other costs would need columns of their own.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 1
_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class User:
    """What the operator sees of a user.

    Attributes:
        name: See `msocks.values.user_name`.
        created_at: When the user was added, UTC.
        has_password: Whether plain SOCKS5 clients can log in as this user.
        max_sessions: Sessions at the same time; None where the proxy's own limit holds.
        max_channels: Control channels at the same time; None where the proxy's own limit holds.
    """

    name: str
    created_at: datetime.datetime
    has_password: bool
    max_sessions: int | None
    max_channels: int | None


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """A salted scrypt hash; `matches` takes some 40 ms of a processor and 16 MiB, so call it in a thread."""

    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: bytes) -> PasswordHash:
        """Hash a password under a fresh salt."""
        salt = secrets.token_bytes(_SALT_BYTES)
        return cls(salt, _scrypt(password, salt))

    def matches(self, password: bytes) -> bool:
        """Whether this is the password."""
        return hmac.compare_digest(_scrypt(password, self.salt), self.digest)


def _scrypt(password: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, maxmem=2**26)


class UserStore:
    """The database of users. One connection, for one thread; several processes may have it open.

    Raises:
        StoreError: From every method, where the file is damaged, locked for long, or of an unknown version.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._path = path
        with self._explained():
            if create and not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            # Autocommit: a statement is a transaction; two that belong together say BEGIN.
            self._database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            with self._explained():
                _SCHEMA.open(self._database, path, create=create)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def add(self, name: str, *, max_sessions: int | None = None, max_channels: int | None = None) -> bytes:
        """Add a user; returns the secret for the access link, which is nowhere else.

        Raises:
            ConfigurationError: The name is not allowed, or taken.
        """
        check_user_name(name)
        secret = secrets.token_bytes(SECRET_BYTES)
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        row = (name, hashlib.sha256(secret).digest(), now, max_sessions, max_channels)
        with self._explained():
            try:
                self._database.execute(
                    "INSERT INTO users (name, secret_sha256, created_at, max_sessions, max_channels)"
                    " VALUES (?, ?, ?, ?, ?)",
                    row,
                )
            except sqlite3.IntegrityError:
                if self.find(name) is None:
                    raise
                raise ConfigurationError(
                    f"there is already a user {name}",
                    remedy=f"choose another name, or make a new access link: msocks user remove {name}, "
                    f"then msocks user add {name}",
                ) from None
        return secret

    def remove(self, name: str) -> None:
        """Remove a user.

        Raises:
            ConfigurationError: There is no such user.
        """
        with self._explained():
            if self._database.execute("DELETE FROM users WHERE name = ?", (name,)).rowcount == 0:
                raise _unknown(name)

    def set_password(self, name: str, password: str | None) -> None:
        """Set the password for plain SOCKS5 clients, or take it away (None).

        Raises:
            ConfigurationError: There is no such user, or RFC 1929 cannot carry the password.
        """
        salt = digest = None
        if password is not None:
            encoded = password.encode()
            if not 1 <= len(encoded) <= MAX_PASSWORD_BYTES:
                raise ConfigurationError(
                    f"the password has {len(encoded)} bytes",
                    remedy=f"a SOCKS password has 1 to {MAX_PASSWORD_BYTES} bytes of UTF-8",
                )
            hashed = PasswordHash.of(encoded)
            salt, digest = hashed.salt, hashed.digest
        with self._explained():
            changed = self._database.execute(
                "UPDATE users SET password_salt = ?, password_scrypt = ? WHERE name = ?", (salt, digest, name)
            )
            if changed.rowcount == 0:
                raise _unknown(name)

    def users(self) -> list[User]:
        """All users, by name."""
        return list(self._select("ORDER BY name"))

    def find(self, name: str) -> User | None:
        """The user of that name."""
        return next(self._select("WHERE name = ?", name), None)

    def secret_matches(self, name: str, secret: bytes) -> bool:
        """Whether `secret` is that user's. Takes the same time whether the user is unknown or the secret wrong."""
        expected = self.fingerprint(name)
        return hmac.compare_digest(hashlib.sha256(secret).digest(), expected or bytes(32)) and expected is not None

    def fingerprint(self, name: str) -> bytes | None:
        """What changes when the user gets another access link; None where there is no such user."""
        with self._explained():
            row = self._database.execute("SELECT secret_sha256 FROM users WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def password_hash(self, name: str) -> PasswordHash | None:
        """The hash of a user's SOCKS password; None where there is no such user or no password."""
        with self._explained():
            row = self._database.execute(
                "SELECT password_salt, password_scrypt FROM users WHERE name = ?", (name,)
            ).fetchone()
        return None if row is None or row[1] is None else PasswordHash(*row)

    def has_passwords(self) -> bool:
        """Whether any user has a SOCKS password."""
        with self._explained():
            row = self._database.execute(
                "SELECT EXISTS (SELECT 1 FROM users WHERE password_scrypt IS NOT NULL)"
            ).fetchone()
        return bool(row[0])

    def version(self) -> int:
        """A number that changes when another connection has changed the database (some microseconds)."""
        with self._explained():
            return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def _select(self, clause: str, *arguments: str) -> Iterator[User]:
        columns = "name, created_at, password_scrypt IS NOT NULL, max_sessions, max_channels"
        with self._explained():
            rows = self._database.execute(f"SELECT {columns} FROM users {clause}", arguments).fetchall()  # noqa: S608
        for name, created_at, has_password, max_sessions, max_channels in rows:
            created = datetime.datetime.fromtimestamp(created_at, datetime.UTC)
            yield User(name, created, bool(has_password), max_sessions, max_channels)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                remedy = "another process is writing to it; try again"
            elif isinstance(error, sqlite3.OperationalError | OSError):
                remedy = "check the state directory, its owner and the space on its disk"
            else:
                remedy = "restore it from a backup, or move it away and add the users again; it was not changed"
            raise StoreError(f"the database of users {self._path} cannot be used: {error}", remedy=remedy) from None


def _unknown(name: str) -> ConfigurationError:
    return ConfigurationError(f"there is no user {name}", remedy="`msocks user list` shows the users")
