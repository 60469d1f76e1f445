"""The links that a flow may use, in the order in which it would have them, and why the others are none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from msocks.policy.model import Hand, LinkFacts, Role, Rule
from msocks.policy.terms import Quantity, Selector, Term

# A flow leaves its link for one with a lower round-trip time only where that is lower by both, or with a higher rate
# only where that is higher by the factor: what is measured is never twice the same, and every move costs something.
RTT_MARGIN = 0.25
RTT_MARGIN_MS = 5.0
RATE_MARGIN = 0.25

_TIERS = {Role.ALWAYS: 0, Role.SECONDARY: 1, Role.BACKUP: 2}


@dataclass(frozen=True, slots=True)
class Barred:
    """Why a flow may not use a link, whether it is up or not."""

    reason: str


def role_of(rule: Rule, link: LinkFacts) -> Role:
    """The role that a link has for the flows of a rule."""
    for selector, role in rule.roles:
        if selector.matches(link.name, link.kind):
            return role
    return link.role


def barred(rule: Rule, link: LinkFacts) -> Barred | None:
    """Why flows of `rule` may not use `link`; None where they may."""
    if rule.only and not any(selector.matches(link.name, link.kind) for selector in rule.only):
        return Barred("only " + ", ".join(selector.text for selector in rule.only))
    if role_of(rule, link) is Role.NEVER:
        return Barred("role never")
    if rule.max_cost is not None and link.cost > rule.max_cost:
        return Barred(f"costs {link.cost:g}, more than {rule.max_cost:g}")
    if link.is_capped:
        return Barred("its data cap is reached")
    return None


def ranked(rule: Rule, hand: Hand, links: Sequence[LinkFacts], current: str | None) -> list[LinkFacts]:
    """The links that can be used and may be, the best first.

    Args:
        rule: What matched.
        hand: What people have said; its `moved` comes first where it is among the links.
        links: All links, in the order of the agent's configuration, which decides last.
        current: The link that carries the flow, which has an advantage where figures that are measured decide.
    """
    terms = (*hand.prefer, *rule.prefer)
    allowed = [link for link in links if link.usable and barred(rule, link) is None]
    if len(allowed) > 1:
        allowed.sort(key=lambda link: _key(rule, terms, link, current))
        if hand.moved is not None:
            allowed.sort(key=lambda link: link.name != hand.moved)
    return allowed


def _key(rule: Rule, terms: Sequence[Term], link: LinkFacts, current: str | None) -> tuple[float, ...]:
    tier = _TIERS[role_of(rule, link)]
    key: list[float] = [tier]
    held = link.name == current
    for term in terms:
        if isinstance(term, Selector):
            chosen = term.matches(link.name, link.kind)
            if chosen and tier == _TIERS[Role.SECONDARY]:
                key[0] = _TIERS[Role.ALWAYS]
            key.append(not chosen)
        else:
            key.append(_figure(term, link, held))
    return tuple(key)


def _figure(quantity: Quantity, link: LinkFacts, held: bool) -> float:
    """Less is better; what is not known comes last."""
    match quantity:
        case Quantity.LOWEST_RTT:
            if link.rtt_ms is None:
                return inf
            return min(link.rtt_ms * (1 - RTT_MARGIN), link.rtt_ms - RTT_MARGIN_MS) if held else link.rtt_ms
        case Quantity.HIGHEST_RATE:
            if link.rate_mbit is None:
                return inf
            return -link.rate_mbit * (1 + RATE_MARGIN) if held else -link.rate_mbit
        case Quantity.LOWEST_COST:
            return link.cost
        case Quantity.WIDEST_COVERAGE:
            return -link.coverage
