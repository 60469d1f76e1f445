"""Where a program's access link comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from msocks.errors import ConfigurationError
from msocks.values.access_link import AccessLink

ACCESS_FILE_VARIABLE = "MSOCKS_ACCESS_FILE"

Access: TypeAlias = AccessLink | str | os.PathLike[str] | None
"""An access link, its text, or the path of a file that holds it; None for the file that $MSOCKS_ACCESS_FILE names."""


def resolve_access(access: Access) -> AccessLink:
    """The access link that `access` stands for. Raises ConfigurationError where there is none."""
    if isinstance(access, AccessLink):
        return access
    if access is None:
        named = os.environ.get(ACCESS_FILE_VARIABLE)
        if not named:
            raise ConfigurationError(
                "no access link was given",
                remedy=f"pass access=, or set ${ACCESS_FILE_VARIABLE} to the file that holds the link",
            )
        access = Path(named)
    if isinstance(access, str) and access.lstrip().startswith("msocks:"):
        return AccessLink.parse(access)
    try:
        text = Path(access).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the access file {os.fspath(access)} cannot be read: {error}",
            remedy="it holds one line, the access link that `msocks user add` printed",
        ) from None
    return AccessLink.parse(text)
