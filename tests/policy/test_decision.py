"""What becomes of a flow, case by case. Each row is a sentence of the manual."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msocks.policy.decision import Action, Ground, Policy, decide, explain
from msocks.policy.model import NO_HAND, FlowFacts, Hand, LinkFacts, NoLink, OnLoss, Role, Rule
from msocks.policy.terms import parse_selector, parse_term
from msocks.values.link import LinkKind

WIFI = LinkFacts("wlan0", LinkKind.WIFI, rtt_ms=20.0, rate_mbit=50.0, coverage=2.0)
CELL = LinkFacts("wwan0", LinkKind.CELLULAR, rtt_ms=60.0, rate_mbit=20.0, cost=1.0, coverage=3.0)
WIRE = LinkFacts("eth0", LinkKind.ETHERNET, rtt_ms=5.0, rate_mbit=900.0, coverage=1.0)
LINKS = (WIFI, CELL, WIRE)


def rule(*prefer: str, **fields: object) -> Rule:
    return Rule(name="r", prefer=tuple(parse_term(text) for text in prefer), **fields)  # type: ignore[arg-type]


def roles(**given: str) -> tuple:
    return tuple((parse_selector(name), Role(role)) for name, role in given.items())


def order(decided_by: Rule | None, links=LINKS, current: str | None = None, hand: Hand = NO_HAND) -> tuple[str, ...]:
    return decide(decided_by, hand, links, current).order


def down(*names: str, links=LINKS) -> tuple[LinkFacts, ...]:
    return tuple(replace(link, usable=False, state="down") if link.name in names else link for link in links)


@pytest.mark.parametrize(
    ("decided_by", "expected"),
    [
        (None, ("wlan0", "wwan0", "eth0")),
        (rule("wwan0"), ("wwan0", "wlan0", "eth0")),
        (rule("w*"), ("wlan0", "wwan0", "eth0")),
        (rule("kind:ethernet", "kind:cellular"), ("eth0", "wwan0", "wlan0")),
        (rule("lowest:rtt"), ("eth0", "wlan0", "wwan0")),
        (rule("highest:rate"), ("eth0", "wlan0", "wwan0")),
        (rule("lowest:cost"), ("wlan0", "eth0", "wwan0")),
        (rule("lowest:cost", "lowest:rtt"), ("eth0", "wlan0", "wwan0")),
        (rule("widest:coverage"), ("wwan0", "wlan0", "eth0")),
        (rule("wwan0", roles=roles(wwan0="backup")), ("wlan0", "eth0", "wwan0")),
        (rule("wwan0", roles=roles(wwan0="secondary")), ("wwan0", "wlan0", "eth0")),
        (rule("lowest:rtt", roles=roles(eth0="secondary")), ("wlan0", "wwan0", "eth0")),
        (rule("lowest:rtt", roles=roles(eth0="never")), ("wlan0", "wwan0")),
        (rule("lowest:rtt", only=(parse_selector("kind:cellular"),)), ("wwan0",)),
        (rule("highest:rate", max_cost=0.0), ("eth0", "wlan0")),
    ],
)
def test_the_order_of_the_links(decided_by: Rule | None, expected: tuple[str, ...]):
    assert order(decided_by) == expected


def test_what_is_not_known_comes_last():
    assert order(rule("lowest:rtt"), (replace(WIRE, rtt_ms=None), CELL)) == ("wwan0", "eth0")
    assert order(rule("highest:rate"), (replace(WIRE, rate_mbit=None), CELL)) == ("wwan0", "eth0")


@pytest.mark.parametrize(
    ("held_ms", "rtt_ms", "leaves"),
    [(100.0, 94.0, False), (100.0, 76.0, False), (100.0, 74.0, True), (8.0, 4.0, False), (8.0, 2.9, True)],
)
def test_a_flow_leaves_its_link_only_for_one_that_is_clearly_quicker(held_ms: float, rtt_ms: float, leaves: bool):
    links = (replace(WIFI, rtt_ms=held_ms), replace(CELL, rtt_ms=rtt_ms))
    assert (order(rule("lowest:rtt"), links, "wlan0")[0] == "wwan0") is leaves
    assert order(rule("lowest:rtt"), links)[0] == "wwan0"


@pytest.mark.parametrize(("rate_mbit", "leaves"), [(62.0, False), (63.0, True)])
def test_a_flow_leaves_its_link_only_for_one_that_is_clearly_fatter(rate_mbit: float, leaves: bool):
    links = (WIFI, replace(CELL, rate_mbit=rate_mbit))
    assert (order(rule("highest:rate"), links, "wlan0")[0] == "wwan0") is leaves


def test_without_a_link_a_new_flow_waits_or_is_refused():
    nothing = down("wlan0", "wwan0", "eth0")
    assert decide(rule("wlan0"), NO_HAND, nothing, None).action is Action.WAIT
    assert decide(rule(max_cost=0.0, no_link=NoLink.REFUSE), NO_HAND, nothing, None).action is Action.REFUSE
    dear = rule(max_cost=0.0, no_link=NoLink.REFUSE)
    assert decide(dear, NO_HAND, down("wlan0", "eth0"), None).action is Action.REFUSE
    # One that runs already is not ended for that: it waits.
    assert decide(dear, NO_HAND, down("wlan0", "eth0"), "wlan0").action is Action.WAIT


def test_on_loss():
    lost = down("wlan0")
    move, wait, reset = (rule("wlan0", on_loss=choice) for choice in (OnLoss.MOVE, OnLoss.WAIT, OnLoss.RESET))
    assert order(move, lost, "wlan0") == ("wwan0", "eth0")
    assert decide(wait, NO_HAND, lost, "wlan0").action is Action.WAIT
    assert decide(reset, NO_HAND, lost, "wlan0").action is Action.RESET
    # As long as the link works there is no other to go to, should the leg alone be lost.
    for each in (wait, reset):
        assert order(each, LINKS, "wlan0") == ("wlan0",)
    # A link that is gone altogether is lost as well.
    assert decide(wait, NO_HAND, (CELL, WIRE), "wlan0").action is Action.WAIT
    assert decide(reset, NO_HAND, (CELL, WIRE), "wlan0").action is Action.RESET


def test_who_waits_may_go_to_what_it_prefers():
    wait = rule("eth0", "wlan0", on_loss=OnLoss.WAIT)
    assert order(wait, down("wlan0"), "wlan0") == ("eth0",)
    assert decide(wait, NO_HAND, down("wlan0", "eth0"), "wlan0").action is Action.WAIT


def test_a_link_that_may_not_be_used_any_more_is_left_whatever_on_loss_says():
    for on_loss in OnLoss:
        decision = decide(rule(roles=roles(wlan0="never"), on_loss=on_loss), NO_HAND, LINKS, "wlan0")
        assert (decision.order, decision.leave) == (("wwan0", "eth0"), True)


def test_a_data_cap_bars_a_link_when_it_is_reached():
    almost = replace(CELL, cap_bytes=1000, used_bytes=999)
    assert order(rule("wwan0"), (WIFI, almost))[0] == "wwan0"
    decision = decide(rule("wwan0"), NO_HAND, (WIFI, replace(almost, used_bytes=1000)), "wwan0")
    assert (decision.order, decision.leave) == (("wlan0",), True)
    assert decide(rule("wwan0"), NO_HAND, (replace(almost, used_bytes=1000),), "wwan0").action is Action.WAIT


def test_a_pin_goes_before_everything():
    capped = replace(CELL, cap_bytes=1, used_bytes=1)
    never = rule("eth0", roles=roles(wwan0="never"))
    decision = decide(never, Hand(pin="wwan0"), (WIFI, capped, WIRE), "eth0")
    assert (decision.order, decision.ground, decision.leave) == (("wwan0",), Ground.PIN, True)
    waiting = decide(never, Hand(pin="wwan0"), down("wwan0"), "wwan0")
    assert (waiting.action, waiting.order) == (Action.WAIT, ())


def test_what_was_asked_at_the_start_goes_before_the_rule():
    hand = Hand(prefer=(parse_term("wwan0"),), on_loss=OnLoss.RESET)
    assert order(rule("eth0"), hand=hand) == ("wwan0", "eth0", "wlan0")
    assert decide(rule("eth0"), hand, down("wwan0"), "wwan0").action is Action.RESET
    assert order(rule("eth0", roles=roles(wwan0="never")), hand=hand) == ("eth0", "wlan0")


def test_a_move_is_a_preference_within_what_the_rule_allows():
    assert order(rule("eth0"), hand=Hand(moved="wwan0")) == ("wwan0", "eth0", "wlan0")
    assert order(rule("eth0", roles=roles(wwan0="never")), hand=Hand(moved="wwan0")) == ("eth0", "wlan0")
    # Who waits for a lost link goes where somebody sends it.
    wait = rule("eth0", on_loss=OnLoss.WAIT)
    assert order(wait, down("eth0"), "eth0", Hand(moved="wwan0")) == ("wwan0",)


def test_an_explanation_tells_of_every_link_and_every_rule_before():
    policy = Policy(
        [
            Rule(name="ssh", process=("ssh",), destination=("*.example",)),
            Rule(name="alice", user=("alice",), roles=roles(wwan0="never"), max_cost=0.5),
            Rule(name="all"),
        ]
    )
    facts = FlowFacts("web.example", 443, process="curl", user="alice", uid=1000)
    said = explain(policy, facts, NO_HAND, down("eth0"), None)
    assert said.decision.rule == "alice"
    assert said.passed_over == (("ssh", ("process",)),)
    assert said.also_matching == ("all",)
    verdicts = {verdict.link: (verdict.allowed, verdict.usable, verdict.reason) for verdict in said.links}
    assert verdicts["wwan0"] == (False, True, "role never")
    assert verdicts["eth0"] == (True, False, "down")
    assert verdicts["wlan0"][:2] == (True, True)
    assert "rtt 20.0 ms" in verdicts["wlan0"][2]
