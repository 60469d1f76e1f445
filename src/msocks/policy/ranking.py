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
    return _barred(rule, link, role_of(rule, link))


def _barred(rule: Rule, link: LinkFacts, role: Role) -> Barred | None:
    if rule.only and not any(selector.matches(link.name, link.kind) for selector in rule.only):
        return Barred("only " + ", ".join(selector.text for selector in rule.only))
    if role is Role.NEVER:
        return Barred("role never")
    if rule.max_cost is not None and link.cost > rule.max_cost:
        return Barred(f"costs {link.cost:g}, more than {rule.max_cost:g}")
    if link.cap_bytes is not None and link.is_capped:
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
    allowed: list[tuple[list[float], LinkFacts]] = []
    for position, link in enumerate(links):
        if link.usable:
            role = role_of(rule, link)
            if _barred(rule, link, role) is None:
                key = _key(terms, link, role, link.name == current)
                key.append(position)  # so that links are never compared themselves
                allowed.append((key, link))
    allowed.sort()
    found = [link for _, link in allowed]
    if hand.moved is not None:
        found.sort(key=lambda link: link.name != hand.moved)
    return found


def _key(terms: Sequence[Term], link: LinkFacts, role: Role, held: bool) -> list[float]:
    tier = 0.0 if role is Role.ALWAYS else 1.0 if role is Role.SECONDARY else 2.0
    key = [tier]
    for term in terms:
        if isinstance(term, Selector):
            chosen = term.matches(link.name, link.kind)
            if chosen and role is Role.SECONDARY:
                key[0] = 0.0
            key.append(0.0 if chosen else 1.0)
        else:
            key.append(_figure(term, link, held))
    return key


def _figure(quantity: Quantity, link: LinkFacts, held: bool) -> float:
    """Less is better; what is not known comes last."""
    if quantity is Quantity.LOWEST_RTT:
        if link.rtt_ms is None:
            return inf
        return min(link.rtt_ms * (1 - RTT_MARGIN), link.rtt_ms - RTT_MARGIN_MS) if held else link.rtt_ms
    if quantity is Quantity.HIGHEST_RATE:
        if link.rate_mbit is None:
            return inf
        return -link.rate_mbit * (1 + RATE_MARGIN) if held else -link.rate_mbit
    return link.cost if quantity is Quantity.LOWEST_COST else -link.coverage
