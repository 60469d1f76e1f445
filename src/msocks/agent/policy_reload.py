"""Takes another policy while the agent runs: when told to, and when the file has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from msocks.agent.policy_errors import PolicyRefused
from msocks.policy.decision import Policy

_log = structlog.get_logger("msocks.agent.policy_reload")

_LOOK_S = 1.0


class PolicySource(Protocol):
    """Where the policy comes from."""

    @property
    def file(self) -> Path:
        """What is read."""

    def read(self) -> NewPolicy:
        """Read it anew; blocks.

        Raises:
            PolicyRefused: It cannot be used, with everything that is wrong.
        """


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """What a file says now.

    Attributes:
        policy: To be used.
        needs_restart: Keys that have changed besides, which count only from the next start on.
    """

    policy: Policy
    needs_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload came to.

    Attributes:
        rules: How many there are now.
        changed_flows: Flows for which another rule holds than before.
        needs_restart: See `NewPolicy`.
    """

    rules: int
    changed_flows: int
    needs_restart: tuple[str, ...]


class PolicyReload:
    """See the module. One reload at a time; the others wait their turn."""

    def __init__(self, source: PolicySource, use: Callable[[Policy], Awaitable[int]]) -> None:
        """`use` takes a policy into service and returns for how many flows another rule holds."""
        self._source = source
        self._use = use
        self._turn = asyncio.Lock()
        self._seen = _stamp(source.file)
        self._watching: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to look whether the file has changed, once a second."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Look no more."""
        tasks = [*self._tasks, *([self._watching] if self._watching is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reload(self) -> Reloaded:
        """Read the file and use what it says.

        Raises:
            PolicyRefused: It cannot be used; the policy stays as it was.
        """
        async with self._turn:
            self._seen = _stamp(self._source.file)
            try:
                found = await asyncio.to_thread(self._source.read)
            except PolicyRefused as error:
                _log.warning("policy_refused", reason=error.what, remedy=error.remedy)
                raise
            changed = await self._use(found.policy)
        _log.info("policy_loaded", rules=len(found.policy.rules), changed_flows=changed)
        if found.needs_restart:
            _log.warning("restart_needed", keys=list(found.needs_restart), remedy="restart the agent for these")
        return Reloaded(len(found.policy.rules), changed, found.needs_restart)

    def reload_soon(self) -> None:
        """Reload in the background; what is wrong is in the log."""
        task = asyncio.get_running_loop().create_task(self._reload_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_quietly(self) -> None:
        try:
            await self.reload()
        except PolicyRefused:
            pass  # reload() has logged it

    async def _watch(self) -> None:
        pending: tuple[int, ...] | None = None
        while True:
            await asyncio.sleep(_LOOK_S)
            stamp = _stamp(self._source.file)
            # A file that is being written is left alone until it has been the same for a second.
            if stamp is not None and stamp != self._seen and stamp == pending:
                await self._reload_quietly()
            pending = stamp


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None  # an editor replaces it, or it is gone: the policy stays
    return found.st_ino, found.st_size, found.st_mtime_ns
