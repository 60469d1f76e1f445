"""What becomes of one flow now: a pure function of its rule, what people said of it, and the links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from msocks.policy.matching import RuleBook, mismatches
from msocks.policy.model import (
    DEFAULT_HOLD_DOWN_S,
    NO_RULE,
    FlowFacts,
    Hand,
    LinkFacts,
    LinkProfile,
    NoLink,
    OnLoss,
    Rule,
)
from msocks.policy.ranking import barred, ranked, role_of


class Policy:
    """Rules and what the user says of the links, ready to be asked."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        links: Sequence[LinkProfile] = (),
        *,
        hold_down_s: float = DEFAULT_HOLD_DOWN_S,
    ) -> None:
        """`hold_down_s` is how long a better link must have been there before a flow goes to it."""
        self.book = RuleBook(rules)
        self.links = tuple(links)
        self.hold_down_s = hold_down_s

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in their order."""
        return self.book.rules


class Action(StrEnum):
    """What is to be done."""

    USE = "use"
    """Run on the first link of the order."""
    WAIT = "wait"
    """There is none: it waits."""
    RESET = "reset"
    """Its link is lost, and it is to end with it."""
    REFUSE = "refuse"
    """It has not begun, and is not to."""


class Ground(StrEnum):
    """What decided."""

    RULE = "rule"
    DEFAULT = "default"
    """No rule matches."""
    PIN = "pin"
    """`msocks pin`, or `msocks run --link`."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a flow.

    Attributes:
        action: What is to be done.
        order: The links it may go to now, the best first; those after the current one only where it may leave that.
        ground: What decided.
        rule: The name of the rule that matches; empty where none does.
        leave: It may not stay on its link, although that works.
    """

    action: Action
    order: tuple[str, ...]
    ground: Ground
    rule: str
    leave: bool = False


@dataclass(frozen=True, slots=True)
class LinkVerdict:
    """Why a link is what it is for a flow."""

    link: str
    allowed: bool
    usable: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and what else was considered.

    Attributes:
        decision: As `decide` gives it.
        links: Every link: those of the order first, then the others.
        passed_over: The rules before the one that decided, each with the fields that did not fit.
        also_matching: The rules behind it that match too.
    """

    decision: Decision
    links: tuple[LinkVerdict, ...]
    passed_over: tuple[tuple[str, tuple[str, ...]], ...]
    also_matching: tuple[str, ...]


def decide(rule: Rule | None, hand: Hand, links: Sequence[LinkFacts], current: str | None) -> Decision:
    """What is to become of a flow.

    Args:
        rule: The first that matches (`RuleBook.match`).
        hand: What people have said of the flow. A pin goes before everything else.
        links: All links there are, in the order of the agent's configuration.
        current: The link that carries the flow or, while none does, that carried it last; None before the first.
    """
    held = rule or NO_RULE
    on_loss = hand.on_loss or held.on_loss
    ground = Ground.DEFAULT if rule is None else Ground.RULE
    name = held.name
    if hand.pin is not None:
        ground = Ground.PIN
        best = [link for link in links if link.name == hand.pin and link.usable]
    else:
        best = ranked(held, hand, links, current)
    order = tuple(link.name for link in best)
    if current is None:
        if order:
            return Decision(Action.USE, order, ground, name)
        refuse = held.no_link is NoLink.REFUSE and ground is not Ground.PIN
        return Decision(Action.REFUSE if refuse else Action.WAIT, (), ground, name)
    known = next((link for link in links if link.name == current), None)
    may_stay = hand.pin == current if hand.pin is not None else known is None or barred(held, known) is None
    if known is None or not known.usable:
        if on_loss is OnLoss.RESET and may_stay:
            return Decision(Action.RESET, (), ground, name)
        if on_loss is OnLoss.WAIT and may_stay and hand.pin is None:
            order = _before_lost(held, hand, links, current)
    elif on_loss is not OnLoss.MOVE and current in order:
        # Should the leg die before the link is known to be lost, there is nowhere else to go.
        order = order[: order.index(current) + 1]
    if not order:
        return Decision(Action.WAIT, (), ground, name)
    return Decision(Action.USE, order, ground, name, leave=not may_stay)


def _before_lost(rule: Rule, hand: Hand, links: Sequence[LinkFacts], current: str) -> tuple[str, ...]:
    """The links that a flow prefers to its own, which is lost."""
    as_if = [replace(link, usable=True) if link.name == current else link for link in links]
    names = [link.name for link in ranked(rule, hand, as_if, current)]
    return tuple(names[: names.index(current)]) if current in names else ()


def explain(
    policy: Policy, facts: FlowFacts, hand: Hand, links: Sequence[LinkFacts], current: str | None
) -> Explanation:
    """The decision of `decide`, and what else was considered."""
    rule = policy.book.match(facts)
    decision = decide(rule, hand, links, current)
    position = policy.rules.index(rule) if rule is not None else len(policy.rules)
    passed = tuple((each.name, mismatches(each, facts)) for each in policy.rules[:position])
    also = tuple(each.name for each in policy.rules[position + 1 :] if not mismatches(each, facts))
    by_name = {link.name: link for link in links}
    names = [*decision.order, *(name for name in by_name if name not in decision.order)]
    verdicts = tuple(_verdict(rule or NO_RULE, hand, by_name[name]) for name in names)
    return Explanation(decision, verdicts, passed, also)


def _verdict(rule: Rule, hand: Hand, link: LinkFacts) -> LinkVerdict:
    if hand.pin is not None:
        reason = None if hand.pin == link.name else f"the flow is pinned to {hand.pin}"
    else:
        found = barred(rule, link)
        reason = None if found is None else found.reason
    if reason is not None:
        return LinkVerdict(link.name, allowed=False, usable=link.usable, reason=reason)
    if not link.usable:
        why = link.state if link.state != "up" else "has no address for the proxy"
        return LinkVerdict(link.name, allowed=True, usable=False, reason=why)
    return LinkVerdict(link.name, allowed=True, usable=True, reason=_figures(rule, link))


def _figures(rule: Rule, link: LinkFacts) -> str:
    """What the preferences saw of a link."""
    said = [f"role {role_of(rule, link)}", f"kind {link.kind}"]
    if link.rtt_ms is not None:
        said.append(f"rtt {link.rtt_ms:.1f} ms")
    if link.rate_mbit is not None:
        said.append(f"rate {link.rate_mbit:.1f} Mbit/s")
    said += [f"cost {link.cost:g}", f"coverage {link.coverage:g}"]
    if link.cap_bytes is not None:
        said.append(f"used {link.used_bytes >> 20} of {link.cap_bytes >> 20} MiB")
    return ", ".join(said)
