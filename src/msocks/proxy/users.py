"""Who the users are, for the running proxy: log-ins, limits, and what changes while it runs."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from concurrent.futures import ThreadPoolExecutor

from msocks.proxy.admission import FailureLimit, Source
from msocks.proxy.config import ProxyLimits
from msocks.proxy.control_connection import REFUSAL_DELAY_S, UserLimits
from msocks.store.users import PasswordHash, UserStore

# scrypt takes some 40 ms of a processor for each password.
_PASSWORD_THREADS = 2
_REMEMBERED_PASSWORDS = 1024


class UserDirectory:
    """Asks the store, and remembers what is expensive or asked often until the store has changed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: UserStore, limits: ProxyLimits) -> None:
        self._loop = loop
        self._store = store
        self._defaults = UserLimits(limits.sessions_per_user, limits.channels_per_user)
        self._failures = FailureLimit()
        self._threads = ThreadPoolExecutor(_PASSWORD_THREADS, thread_name_prefix="password")
        # No password is kept: only its MAC under a key of this process.
        self._memory_key = secrets.token_bytes(32)
        self._right_passwords: set[bytes] = set()
        self._limits: dict[str, UserLimits] = {}
        self._fingerprints: dict[str, bytes] = {}
        self._nobody = PasswordHash.of(secrets.token_bytes(16))
        self._has_passwords = store.has_passwords()
        self._version = store.version()

    @property
    def accepts_passwords(self) -> bool:
        """Whether any user has a SOCKS password."""
        return self._has_passwords

    def refresh(self) -> bool:
        """Look whether the store has changed, and forget what is remembered of it then.

        Raises:
            StoreError: It cannot be read.
        """
        version = self._store.version()
        if version == self._version:
            return False
        self._has_passwords = self._store.has_passwords()
        self._right_passwords.clear()
        self._limits = {user: self._read_limits(user) for user in self._limits}
        self._version = version
        return True

    def is_same(self, user: str) -> bool:
        """Whether `user` is still the one who has logged in: neither removed, nor removed and added again.

        Raises:
            StoreError: The store cannot be read.
        """
        return self._store.fingerprint(user) == self._fingerprints.get(user)

    def recognise(self, user: str, fingerprint: bytes) -> bool:
        """Whether `user` is the one who had this fingerprint when an earlier process let him in; he is logged in then.

        Raises:
            StoreError: The store cannot be read.
        """
        if self._store.fingerprint(user) != fingerprint:
            return False
        self._log_in(user)
        return True

    def fingerprint(self, user: str) -> bytes:
        """What `recognise` of a later process wants to know of a user who is logged in; empty for one who is not."""
        return self._fingerprints.get(user, b"")

    def limits(self, user: str) -> UserLimits:
        """What the user may have; the proxy's defaults for whoever has no limits of his own."""
        known = self._limits.get(user)
        return known if known is not None else self._defaults

    def forget(self, user: str) -> None:
        """The user is gone."""
        self._fingerprints.pop(user, None)
        self._limits.pop(user, None)

    def _log_in(self, user: str) -> None:
        fingerprint = self._store.fingerprint(user)
        if fingerprint is not None:
            self._fingerprints[user] = fingerprint
            self._limits[user] = self._read_limits(user)

    def _read_limits(self, user: str) -> UserLimits:
        found, defaults = self._store.find(user), self._defaults
        if found is None:
            return defaults
        return UserLimits(
            defaults.max_sessions if found.max_sessions is None else found.max_sessions,
            defaults.max_channels if found.max_channels is None else found.max_channels,
        )

    def authenticate(self, source: Source, user: str, secret: bytes) -> UserLimits | None:
        """The user's limits where the access link's secret is right.

        Raises:
            StoreError: The store cannot be read.
        """
        now = self._loop.time()
        if self._failures.blocked(source, now):
            return None
        if not self._store.secret_matches(user, secret):
            self._failures.failed(source, now)
            return None
        self._log_in(user)
        return self.limits(user)

    async def password_matches(self, source: Source, user: bytes, password: bytes) -> str | None:
        """The user's name where the SOCKS password is right. A wrong one takes a while, known user or not.

        Raises:
            StoreError: The store cannot be read.
        """
        mac = hmac.digest(self._memory_key, len(user).to_bytes(1, "big") + user + password, "sha256")
        try:
            name = user.decode()
        except UnicodeDecodeError:
            name = ""
        if mac in self._right_passwords:
            return name
        if not self._failures.blocked(source, self._loop.time()):
            version = self._version
            expected = self._store.password_hash(name) if name else None
            right = await self._loop.run_in_executor(self._threads, (expected or self._nobody).matches, password)
            if right and expected is not None:
                if version == self._version:
                    if len(self._right_passwords) >= _REMEMBERED_PASSWORDS:
                        self._right_passwords.clear()
                    self._right_passwords.add(mac)
                self._log_in(name)
                return name
            self._failures.failed(source, self._loop.time())
        await asyncio.sleep(REFUSAL_DELAY_S)
        return None

    def close(self) -> None:
        """Close the store."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()
