"""Which ports of the proxy a user's listeners may have: the operator's rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

EVERYBODY = "*"
"""Stands for all users in the rule."""

PortSpans: TypeAlias = Sequence[tuple[int, int]]
"""First and last port of each span, both included."""


class InboundRules:
    """See the module."""

    def __init__(self, publish: Mapping[str, PortSpans]) -> None:
        """`publish` gives the spans of ports by the user's name; those of `EVERYBODY` are everybody's."""
        self._publish = publish

    def ports_of(self, user: str) -> Iterator[int]:
        """The ports that a user may have, in the order of the rule."""
        for first, last in self._spans(user):
            yield from range(first, last + 1)

    def refusal(self, user: str, port: int) -> str | None:
        """Why a user may not publish at `port` (0: at any); None where he may."""
        spans = self._spans(user)
        if not spans:
            return (
                f"the proxy's operator lets {user} publish nothing; "
                f'ask for a line such as {user} = ["{port or 8000}"] in [proxy.publish]'
            )
        if port and not any(first <= port <= last for first, last in spans):
            return (
                f"{user} may publish at the ports {shown(spans)}, not at {port}; use one of them, or ask the operator"
            )
        return None

    def _spans(self, user: str) -> list[tuple[int, int]]:
        return [*self._publish.get(user, ()), *self._publish.get(EVERYBODY, ())]


def shown(spans: PortSpans) -> str:
    """Spans of ports as people write them."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
