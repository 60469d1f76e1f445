"""Who the program runs as: under sudo the user who called sudo, the privilege being for the hooks alone."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msocks.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Identity:
    """An account of this host."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str

    @property
    def runtime_directory(self) -> Path:
        """Where the service manager puts the sockets of the account's programs, if there is one."""
        return Path("/run/user", str(self.uid))

    def environment(self, caller: Mapping[str, str]) -> dict[str, str]:
        """The caller's environment as the account would have it: of sudo's root, nothing is left."""
        kept = {name: value for name, value in caller.items() if not name.startswith("SUDO_")}
        kept |= {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        kept.pop("XDG_RUNTIME_DIR", None)
        if self.runtime_directory.is_dir():
            kept["XDG_RUNTIME_DIR"] = str(self.runtime_directory)
        return kept

    def assume(self) -> None:
        """Become this account, for good. Raises OSError."""
        os.initgroups(self.name, self.gid)
        os.setgid(self.gid)
        os.setuid(self.uid)


def find_identity(wanted: str | None, environment: Mapping[str, str]) -> Identity | None:
    """Who the program shall run as; None for who runs this.

    Args:
        wanted: A name that was asked for.
        environment: Has what sudo tells (``SUDO_UID``).

    Raises:
        ConfigurationError: There is no such account, or this process may not change to another.
    """
    sudo_uid = environment.get("SUDO_UID", "")
    try:
        if wanted is not None:
            found = pwd.getpwnam(wanted)
        elif os.geteuid() == 0 and sudo_uid.isdecimal() and int(sudo_uid) != 0:
            found = pwd.getpwuid(int(sudo_uid))
        else:
            return None
    except KeyError:
        raise ConfigurationError(
            f"there is no user {wanted or sudo_uid}", remedy="give the name of an account of this host with --user"
        ) from None
    if found.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise ConfigurationError("only root can run a program as another user", remedy="leave --user out, or use sudo")
    return Identity(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir, found.pw_shell)
