"""Where a proxy keeps what outlives it, and who may look at it."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from msocks.errors import ConfigurationError, MsocksError

_MODE = 0o700
_IDENTITY = "identity.pem"
_USERS = "users.sqlite"
_SESSIONS = "sessions.sqlite"
_ADMIN_SOCKET = "admin.sock"


class StoreError(MsocksError):
    """A file of the state directory cannot be read, or is of a version that this one does not know.

    Nothing was changed: the file is as it was.
    """


def _owner_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The directory given by ``--state``; its mode is 0700 and its owner is the user who runs the proxy."""

    path: Path

    @classmethod
    def prepare(cls, path: Path) -> Self:
        """The directory at `path`, created where it is missing.

        A directory that is empty or was used before is made private; one that holds something else is not touched.

        Raises:
            ConfigurationError: It cannot be created, is no directory, belongs to another user, or is open to others
                and holds files that are not ours.
        """
        try:
            path.mkdir(mode=_MODE, parents=True, exist_ok=True)
            status = path.stat()
            _check_owner(path, status.st_uid)
            if status.st_mode & 0o077:
                _make_private(path)
        except FileExistsError:
            raise ConfigurationError(
                f"the state directory {path} is a file", remedy="give a directory with --state"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"the state directory {path} cannot be used: {error.strerror}",
                remedy="give a directory that you may write to with --state",
            ) from None
        return cls(path)

    @classmethod
    def existing(cls, path: Path) -> Self:
        """The directory at `path`, which a proxy or ``msocks user add`` has created before.

        Raises:
            ConfigurationError: There is none, or it belongs to another user.
        """
        if not (path / _USERS).exists():
            raise ConfigurationError(
                f"{path} is not the state directory of a proxy", remedy="give that of `msocks proxy` with --state"
            )
        _check_owner(path, path.stat().st_uid)
        return cls(path)

    @property
    def identity(self) -> Path:
        """Private key and certificate, PEM, mode 0600."""
        return self.path / _IDENTITY

    @property
    def users(self) -> Path:
        """The SQLite database of users."""
        return self.path / _USERS

    @property
    def sessions(self) -> Path:
        """The SQLite database of what the next proxy has to know of this one's sessions."""
        return self.path / _SESSIONS

    @property
    def admin_socket(self) -> Path:
        """The running proxy's Unix socket for its operator."""
        return self.path / _ADMIN_SOCKET


def _check_owner(path: Path, owner: int) -> None:
    # Files that root creates in a daemon's directory could not be read by the daemon.
    if owner != os.geteuid():
        name = _owner_name(owner)
        raise ConfigurationError(
            f"the state directory {path} belongs to the user {name}",
            remedy=f"run the command as that user: runuser -u {name} -- msocks ...",
        )


def _make_private(path: Path) -> None:
    present = {entry.name for entry in path.iterdir()}
    if present and _USERS not in present and _IDENTITY not in present:
        raise ConfigurationError(
            f"the state directory {path} is open to other users and holds files that are not the proxy's",
            remedy=f"give a directory of its own with --state, or make this one private: chmod 700 {path}",
        )
    path.chmod(_MODE)
