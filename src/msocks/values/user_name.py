"""Names of users: 1 to 64 bytes of UTF-8, printable, without white space."""

from __future__ import annotations

from msocks.errors import ConfigurationError

MAX_USER_NAME_BYTES = 64


def check_user_name(name: str) -> str:
    """Return `name` if a user may have it.

    Raises:
        ConfigurationError: It is empty, too long, or has white space or unprintable characters.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigurationError("the user name is not valid Unicode") from None
    if not 1 <= size <= MAX_USER_NAME_BYTES:
        raise ConfigurationError(
            f"the user name has {size} bytes", remedy=f"a user name has 1 to {MAX_USER_NAME_BYTES} bytes of UTF-8"
        )
    if not name.isprintable() or any(character.isspace() for character in name):
        raise ConfigurationError(
            f"the user name {name!r} has white space or unprintable characters", remedy="choose another"
        )
    return name
