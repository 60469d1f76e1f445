"""The loop of a process that keeps hooks, or a router's rules: it waits for descriptors, and for a lost agent."""

from __future__ import annotations

import select
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

# How often to look for an agent, or whether it hangs.
_AGENT_PAUSE_MS = 1000


class Part(Protocol):
    """What is served."""

    @property
    def descriptors(self) -> set[int]:
        """To be watched for reading; others after every `serve`."""

    @property
    def looks_for_agent(self) -> bool:
        """Whether `serve` shall be called every second, though nothing is ready: there is no agent, or it may hang."""

    def serve(self, ready: Collection[int]) -> None:
        """Do what there is to do."""


def serve_until(
    parts: Sequence[Part], is_over: Callable[[], bool], watch: Callable[[select.poll], int] | None = None
) -> None:
    """Serve `parts` until `is_over`, which is asked after every event; `watch` registers what else is an event."""
    while not is_over():
        poll = select.poll()
        if watch is not None:
            watch(poll)
        for part in parts:
            for descriptor in part.descriptors:
                poll.register(descriptor, select.POLLIN)
        waits = any(part.looks_for_agent for part in parts)
        ready = {descriptor for descriptor, _ in poll.poll(_AGENT_PAUSE_MS if waits else None)}
        for part in parts:
            part.serve(ready)
