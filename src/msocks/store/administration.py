"""The operator's commands: what ``msocks user ...`` does. Blocking; every change is told to a running proxy at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from msocks.store.identity import ProxyIdentity
from msocks.store.running_proxy import tell_users_changed
from msocks.store.state_directory import StateDirectory
from msocks.store.users import User, UserStore
from msocks.values.access_link import AccessLink
from msocks.values.endpoint import Endpoint


def add_user(
    state: Path,
    name: str,
    addresses: Sequence[Endpoint],
    *,
    max_sessions: int | None = None,
    max_channels: int | None = None,
) -> AccessLink:
    """Add a user and return the access link; it cannot be had again. State and key are created where missing.

    Args:
        state: The proxy's state directory.
        name: See `msocks.values.user_name`.
        addresses: Where clients reach the proxy, 1 to 16, the preferred one first.
        max_sessions: Limit for this user; None for the proxy's.
        max_channels: Limit for this user; None for the proxy's.

    Raises:
        ConfigurationError: The name is taken or not allowed, an address cannot stand in a link, or the directory
            cannot be used. Nothing was added then.
        StoreError: A file in the directory is damaged or too new.
    """
    directory = StateDirectory.prepare(state)
    identity = ProxyIdentity.load_or_create(directory)
    # Refuse addresses before anything is written.
    AccessLink(user=name, secret=bytes(32), addresses=tuple(addresses), pin=identity.pin)
    with closing(UserStore(directory.users, create=True)) as store:
        secret = store.add(name, max_sessions=max_sessions, max_channels=max_channels)
    tell_users_changed(directory)
    return AccessLink(user=name, secret=secret, addresses=tuple(addresses), pin=identity.pin)


def list_users(state: Path) -> list[User]:
    """All users, by name.

    Raises:
        ConfigurationError: `state` is not a state directory.
        StoreError: The database is damaged or too new.
    """
    with _users(state) as (_, store):
        return store.users()


def remove_user(state: Path, name: str) -> None:
    """Remove a user; a running proxy ends the user's sessions at once.

    Raises:
        ConfigurationError: There is no such user or state directory.
        StoreError: The database is damaged or too new.
    """
    with _users(state) as (directory, store):
        store.remove(name)
        tell_users_changed(directory)


def set_password(state: Path, name: str, password: str | None) -> None:
    """Set the password with which plain SOCKS5 clients (RFC 1929) log in as this user; None takes it away.

    Raises:
        ConfigurationError: There is no such user or state directory, or the password is empty or too long.
        StoreError: The database is damaged or too new.
    """
    with _users(state) as (directory, store):
        store.set_password(name, password)
        tell_users_changed(directory)


@contextmanager
def _users(state: Path) -> Iterator[tuple[StateDirectory, UserStore]]:
    directory = StateDirectory.existing(state)
    with closing(UserStore(directory.users)) as store:
        yield directory, store
