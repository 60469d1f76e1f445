"""From what the user says of a link and what was measured to the facts that decisions are made of."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from msocks.policy.model import DEFAULT_COST, DEFAULT_COVERAGE, LinkFacts, LinkProfile
from msocks.policy.terms import is_glob
from msocks.values.link import LinkKind

_MIB = 1024 * 1024


def profile_of(name: str, profiles: Sequence[LinkProfile]) -> LinkProfile:
    """What the user says of a link: under its own name, else under the first glob that fits, else nothing."""
    for profile in profiles:
        if profile.pattern == name:
            return profile
    for profile in profiles:
        if is_glob(profile.pattern) and fnmatchcase(name, profile.pattern):
            return profile
    return LinkProfile(name)


def link_facts(
    profile: LinkProfile,
    name: str,
    kind: LinkKind,
    *,
    usable: bool,
    state: str,
    rtt_ms: float | None,
    rate_mbit: float | None,
    used_bytes: int,
) -> LinkFacts:
    """The facts of one link; `kind` and `rate_mbit` are what was found out, before which the profile goes."""
    kind = profile.kind or kind
    return LinkFacts(
        name=name,
        kind=kind,
        usable=usable,
        state=state,
        rtt_ms=rtt_ms,
        rate_mbit=rate_mbit if profile.rate_mbit is None else profile.rate_mbit,
        role=profile.role,
        cost=DEFAULT_COST[kind] if profile.cost is None else profile.cost,
        coverage=DEFAULT_COVERAGE[kind] if profile.coverage is None else profile.coverage,
        cap_bytes=None if profile.cap_mib is None else profile.cap_mib * _MIB,
        used_bytes=used_bytes if profile.cap_mib is not None else 0,
    )
