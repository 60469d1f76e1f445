"""Looks, twice a second, at the streams that still hold bytes: no event tells when a peer has ACKed."""

from __future__ import annotations

from typing import Protocol

from msocks.transport.reactor import Reactor

_PERIOD_S = 0.5
_HURRY_S = 0.02


class Swept(Protocol):
    """What a sweep looks after."""

    def sweep(self) -> bool:
        """Let go of what can be let go; False when there is nothing left to look after."""


class Sweep:
    """A timer that runs only while somebody holds bytes; an idle process is not woken."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._members: set[Swept] = set()
        self._armed = False
        self._hurried: set[Swept] = set()

    def add(self, member: Swept) -> None:
        """Look after `member` until its sweep() returns False."""
        self._members.add(member)
        if not self._armed:
            self._armed = True
            self._reactor.loop.call_later(_PERIOD_S, self._run)

    def hurry(self, member: Swept) -> None:
        """Look at `member` once, soon: it cannot go on before it has let go of something."""
        if not self._hurried:
            self._reactor.loop.call_later(_HURRY_S, self._run_hurried)
        self._hurried.add(member)

    def discard(self, member: Swept) -> None:
        """Stop looking after `member`."""
        self._members.discard(member)
        self._hurried.discard(member)

    def _run_hurried(self) -> None:
        hurried, self._hurried = self._hurried, set()
        for member in hurried:
            member.sweep()

    def _run(self) -> None:
        self._armed = False
        for member in list(self._members):
            if member in self._members and not member.sweep():
                self._members.discard(member)
        if self._members:
            self._armed = True
            self._reactor.loop.call_later(_PERIOD_S, self._run)
