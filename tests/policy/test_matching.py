"""The first rule that matches: what fits what, and the index against asking every rule."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msocks.policy.decision import Action, Policy, decide, explain
from msocks.policy.matching import RuleBook, mismatches
from msocks.policy.model import NO_HAND, FlowFacts, Hand, LinkFacts, NoLink, OnLoss, Role, Rule
from msocks.policy.ranking import barred
from msocks.policy.terms import PortRange, Quantity, parse_selector, parse_term
from msocks.values.link import LinkKind

FLOW = FlowFacts("www.video.example", 443, process="mpv", user="alice", uid=1000, tag="film")


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({}, True),
        ({"process": ("mpv",)}, True),
        ({"process": ("vlc", "m*")}, True),
        ({"process": ("m?v",)}, True),
        ({"process": ("MPV",)}, False),
        ({"user": ("alice",)}, True),
        ({"user": ("1000",)}, True),
        ({"user": ("bob", "1001")}, False),
        ({"tag": ("film",)}, True),
        ({"tag": ("work",)}, False),
        ({"source": (ip_network("192.168.8.0/24"),)}, False),
        ({"destination": ("*.example",)}, True),
        ({"destination": ("video.example",)}, False),
        ({"destination": ("www.*.example",)}, True),
        ({"destination": (ip_network("0.0.0.0/0"), ip_network("::/0"))}, False),
        ({"port": (PortRange(443, 443),)}, True),
        ({"port": (PortRange(1, 442), PortRange(444, 65535))}, False),
        ({"port": (PortRange(400, 450), PortRange(440, 500))}, True),
        ({"process": ("mpv",), "port": (PortRange(80, 80),)}, False),
    ],
)
def test_what_fits(fields: dict, matches: bool):
    rule = Rule(name="r", **fields)
    assert (RuleBook([rule]).match(FLOW) is rule) is matches
    assert (mismatches(rule, FLOW) == ()) is matches


@pytest.mark.parametrize(
    ("network", "address", "matches"),
    [
        ("192.0.2.0/24", "192.0.2.255", True),
        ("192.0.2.0/24", "192.0.3.0", False),
        ("192.0.2.7/32", "192.0.2.7", True),
        ("2001:db8::/32", "2001:db8:ffff::1", True),
        ("2001:db8::/32", "192.0.2.1", False),
        ("0.0.0.0/0", "2001:db8::1", False),
    ],
)
def test_networks_fit_addresses(network: str, address: str, matches: bool):
    rule = Rule(name="r", destination=(ip_network(network),))
    assert (RuleBook([rule]).match(FlowFacts(ip_address(address), 80)) is rule) is matches


@pytest.mark.parametrize(("source", "matches"), [("192.168.8.77", True), ("192.168.9.1", False), ("fd00::1", True)])
def test_networks_fit_other_hosts(source: str, matches: bool):
    rule = Rule(name="r", source=(ip_network("192.168.8.0/24"), ip_network("fd00::/8")))
    facts = FlowFacts("www.example", 80, source=ip_address(source))
    assert (RuleBook([rule]).match(facts) is rule) is matches
    assert mismatches(rule, facts) == (() if matches else ("source",))


def test_what_is_not_known_fits_no_pattern():
    stranger = FlowFacts("www.example", 443)
    unknown: list[dict[str, Any]] = [{"process": ("*",)}, {"user": ("*",)}, {"tag": ("*",)}]
    for fields in unknown:
        assert RuleBook([Rule(name="r", **fields)]).match(stranger) is None


def test_the_program_is_asked_for_only_where_it_could_decide():
    web = FlowFacts("www.example", 443)
    by_process = Rule(name="p", process=("mpv",), port=(PortRange(443, 443),))
    catch_all = Rule(name="all")
    assert RuleBook([by_process, catch_all]).asks_for_program(web)
    assert not RuleBook([catch_all, by_process]).asks_for_program(web)
    assert not RuleBook([by_process, catch_all]).asks_for_program(FlowFacts("www.example", 80))
    assert not RuleBook([]).asks_for_program(web)
    assert RuleBook([Rule(name="u", user=("alice",))]).asks_for_program(web)


# -- properties -----------------------------------------------------------------------------------------------------

TEXTS = st.text("ab", min_size=1, max_size=3)
GLOBS = st.text("ab*?", min_size=1, max_size=4)
NETWORKS = st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "::/0"]).map(
    ip_network
)
PORTS = st.tuples(st.integers(1, 9), st.integers(0, 3)).map(lambda at: PortRange(at[0], at[0] + at[1]))
NAMES = ("a", "b", "ab")
SELECTORS = st.sampled_from(["a", "b", "ab", "a*", "*", "kind:wifi", "kind:cellular"]).map(parse_selector)
TERMS = st.one_of(SELECTORS, st.sampled_from(list(Quantity)))
RULES = st.builds(
    Rule,
    name=st.uuids().map(str),
    process=st.lists(GLOBS, max_size=2).map(tuple),
    user=st.lists(st.one_of(GLOBS, st.just("7")), max_size=2).map(tuple),
    tag=st.lists(GLOBS, max_size=1).map(tuple),
    destination=st.lists(st.one_of(GLOBS, NETWORKS), max_size=2).map(tuple),
    port=st.lists(PORTS, max_size=2).map(tuple),
    prefer=st.lists(TERMS, max_size=3).map(tuple),
    roles=st.lists(st.tuples(SELECTORS, st.sampled_from(Role)), max_size=2).map(tuple),
    only=st.lists(SELECTORS, max_size=1).map(tuple),
    max_cost=st.none() | st.sampled_from([0.0, 1.0]),
    on_loss=st.sampled_from(OnLoss),
    no_link=st.sampled_from(NoLink),
)
FLOWS = st.builds(
    FlowFacts,
    host=TEXTS | st.sampled_from(["10.1.2.3", "10.1.9.9", "192.0.2.1", "fd00::1"]).map(ip_address),
    port=st.integers(1, 12),
    process=st.none() | TEXTS,
    user=st.none() | TEXTS,
    uid=st.none() | st.sampled_from([7, 8]),
    tag=st.none() | TEXTS,
)
LINK_SETS = st.lists(
    st.builds(
        LinkFacts,
        name=st.sampled_from(NAMES),
        kind=st.sampled_from(LinkKind),
        usable=st.booleans(),
        rtt_ms=st.none() | st.floats(0, 1000),
        rate_mbit=st.none() | st.floats(0, 1000),
        role=st.sampled_from(Role),
        cost=st.sampled_from([0.0, 1.0, 2.0]),
        coverage=st.floats(0, 5),
        cap_bytes=st.none() | st.just(100),
        used_bytes=st.integers(0, 200),
    ),
    max_size=3,
    unique_by=lambda link: link.name,
)
HANDS = st.builds(
    Hand,
    pin=st.none() | st.sampled_from(NAMES),
    moved=st.none() | st.sampled_from(NAMES),
    prefer=st.lists(TERMS, max_size=1).map(tuple),
    on_loss=st.none() | st.sampled_from(OnLoss),
)
CURRENT = st.none() | st.sampled_from(NAMES)


@settings(max_examples=60)
@given(st.lists(RULES, max_size=12), FLOWS)
def test_the_index_finds_what_asking_every_rule_finds(rules: list[Rule], flow: FlowFacts):
    expected = next((rule for rule in rules if not mismatches(rule, flow)), None)
    assert RuleBook(rules).match(flow) is expected


@settings(max_examples=60)
@given(st.lists(RULES, max_size=6), FLOWS)
def test_a_program_that_is_not_asked_for_changes_nothing(rules: list[Rule], flow: FlowFacts):
    book = RuleBook(rules)
    stranger = FlowFacts(flow.host, flow.port, tag=flow.tag)
    if not book.asks_for_program(stranger):
        assert book.match(flow) is book.match(stranger)


@settings(max_examples=60)
@given(st.lists(RULES, max_size=4), FLOWS, HANDS, LINK_SETS, CURRENT)
def test_decisions_are_total_repeatable_and_within_the_rules(
    rules: list[Rule], flow: FlowFacts, hand: Hand, links: list[LinkFacts], current: str | None
):
    policy = Policy(rules)
    rule = policy.book.match(flow)
    decision = decide(rule, hand, links, current)
    assert decide(rule, hand, list(links), current) == decision
    assert (decision.action is Action.USE) is bool(decision.order)
    assert len(set(decision.order)) == len(decision.order)
    by_name = {link.name: link for link in links}
    for name in decision.order:
        assert by_name[name].usable
        if hand.pin is None:
            assert barred(rule or Rule(name=""), by_name[name]) is None
        else:
            assert name == hand.pin
    if decision.action is Action.REFUSE:
        assert current is None
    if decision.action is Action.RESET:
        assert current is not None
    said = explain(policy, flow, hand, links, current)
    assert said.decision == decision
    assert said.decision.rule == ("" if rule is None else rule.name)
    assert sorted(verdict.link for verdict in said.links) == sorted(by_name)
    assert all(fields for _, fields in said.passed_over)
    assert [name for name, _ in said.passed_over] == [each.name for each in rules[: len(said.passed_over)]]


@given(RULES, LINK_SETS)
def test_a_link_whose_role_is_never_is_never_chosen(rule: Rule, links: list[LinkFacts]):
    barring = Rule(name="r", prefer=rule.prefer, roles=((parse_selector("a"), Role.NEVER), *rule.roles))
    for current in (None, *NAMES):
        assert "a" not in decide(barring, NO_HAND, links, current).order


@given(LINK_SETS, st.sampled_from(list(Quantity)))
def test_a_flow_that_has_moved_does_not_move_back_at_once(links: list[LinkFacts], quantity: Quantity):
    """With figures that stay, following the first of the order comes to rest after one step."""
    rule = Rule(name="r", prefer=(parse_term(quantity),))
    first = decide(rule, NO_HAND, links, "b").order
    if first:
        assert decide(rule, NO_HAND, links, first[0]).order[0] == first[0]


def test_more_globs_than_are_tried_together():
    rules = [Rule(name=str(number), process=(f"a?{number:03}*z",)) for number in range(130)]
    book = RuleBook(rules)
    for number in (0, 49, 50, 99, 100, 129):
        assert book.match(FlowFacts("a", 1, process=f"ax{number:03}yz")) is rules[number]
    assert book.match(FlowFacts("a", 1, process="ax130yz")) is None
