"""Puts back what the splice stands on where somebody else has taken it away: its programs, and its firewall table.

Until then the other of the two keeps the sessions from harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from msocks.datapath.splice.firewall import Firewall, RulesetWatch
from msocks.datapath.splice.hooks import Hooks
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.transport.reactor import Reactor

_log = structlog.get_logger("msocks.datapath.splice")

_LOOK_S = 5.0  # no event tells that a program was detached
_SETTLE_S = 0.05  # a change of the rules seldom comes alone
_BETWEEN_S = 1.0


class Caretaker:
    """See the module. It begins at once; `close` it before what it looks after."""

    def __init__(
        self, reactor: Reactor, hooks: Hooks, firewall: Firewall, ports: PortRange, listeners: Callable[[], set[int]]
    ) -> None:
        """`listeners` gives the ports that mobile legs come to; without one there is no table yet.

        Raises OSError where the rules cannot be watched.
        """
        self._reactor = reactor
        self._hooks = hooks
        self._firewall = firewall
        self._ports = ports
        self._listeners = listeners
        self._rules = RulesetWatch()
        self._changed = False
        self._task: asyncio.Task[None] | None = None
        reactor.watch(self._rules.fileno(), lambda _events: self._on_rules())
        self._timer = reactor.loop.call_later(_LOOK_S, self._look)

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._reactor.unwatch(self._rules.fileno())
        self._rules.close()

    def _look(self) -> None:
        for name in self._hooks.verify():
            _log.warning(
                "programs_attached_again", interface=name, reason="somebody had detached the splice's programs"
            )
        self._timer = self._reactor.loop.call_later(_LOOK_S, self._look)

    def _on_rules(self) -> None:
        self._rules.drain()
        self._changed = True
        if self._task is None:
            self._task = self._reactor.loop.create_task(self._see_to_rules())

    async def _see_to_rules(self) -> None:
        """As long as they change; on a host whose rules change all the time, once a second."""
        pause = _SETTLE_S
        try:
            while self._changed:
                await asyncio.sleep(pause)
                self._changed, pause = False, _BETWEEN_S
                try:
                    listeners = sorted(self._listeners())
                    if listeners and not await self._firewall.present():
                        await self._firewall.install_again(self._ports, listeners)
                        _log.warning(
                            "firewall_installed_again", reason="somebody had removed the splice's nftables table"
                        )
                except (SpliceRefused, TimeoutError) as error:
                    remedy = getattr(error, "remedy", "")
                    _log.error("firewall_missing", reason=str(error), remedy=remedy)
        finally:
            self._task = None
