"""The links as policy sees them: what the node knows, what was measured, and what the user says of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from msocks.agent.link_meter import LinkMeter
from msocks.client.node import MobileNode
from msocks.link_monitor.link_kind import link_kind
from msocks.policy.model import LinkFacts, LinkProfile
from msocks.policy.profiles import link_facts, profile_of
from msocks.values.link import LinkKind

_GONE = "gone"
_STARTING_S = 3.0


class LinkPicture:
    """Remembers links that are gone as long as the agent runs: a flow may wait for one."""

    def __init__(self, node: MobileNode, meter: LinkMeter, profiles: Sequence[LinkProfile]) -> None:
        self._node = node
        self._meter = meter
        self._profiles = tuple(profiles)
        self._kinds: dict[tuple[str, int], LinkKind] = {}
        self._known: dict[str, LinkKind] = {}
        self._usable_since: dict[str, float] = {}
        self._began: float | None = None

    def set_profiles(self, profiles: Sequence[LinkProfile]) -> None:
        """What the user says from now on."""
        self._profiles = tuple(profiles)

    def metered(self) -> dict[str, int]:
        """The links whose months count, with the day on which they begin."""
        found = {}
        for name in self._node.links:
            profile = profile_of(name, self._profiles)
            if profile.cap_mib is not None:
                found[name] = profile.cap_day
        return found

    def is_metered(self, link: str) -> bool:
        """Whether the use of a link costs money, or counts for a cap: it shall carry nothing in vain."""
        kind = self._known.get(link) or link_kind(link)
        facts = self._facts(link, kind, False, _GONE)
        return facts.cost > 0 or facts.cap_bytes is not None

    def usable_for_s(self, link: str, now: float) -> float:
        """How long a link has been usable without a break, as far as `facts` has seen."""
        return now - self._usable_since.get(link, now)

    def facts(self, usable: Sequence[str], now: float) -> list[LinkFacts]:
        """All links in the node's order, then those that are gone. `usable` are those that a leg can be tried on."""
        for name in list(self._usable_since):
            if name not in usable:
                del self._usable_since[name]
        if self._began is None:
            self._began = now
        for name in usable:
            # What is there when the agent starts has not come up with it.
            since = -inf if now - self._began < _STARTING_S else now
            self._usable_since.setdefault(name, since)
        links = self._node.links
        for name, link in links.items():
            key = name, link.index
            if key not in self._kinds:
                self._kinds[key] = link_kind(name)
            self._known[name] = self._kinds[key]
        found = [self._facts(name, self._known[name], name in usable, link.state.value) for name, link in links.items()]
        return found + [
            self._facts(name, kind, False, _GONE) for name, kind in self._known.items() if name not in links
        ]

    def _facts(self, name: str, kind: LinkKind, usable: bool, state: str) -> LinkFacts:
        return link_facts(
            profile_of(name, self._profiles),
            name,
            kind,
            usable=usable,
            state=state,
            rtt_ms=self._node.rtt_ms(name),
            rate_mbit=self._meter.rate_mbit(name),
            used_bytes=self._meter.used(name),
        )
