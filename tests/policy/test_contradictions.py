"""Policies that cannot be meant as they stand are refused, with the place, the cause and what to do."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from msocks.policy.contradictions import contradictions
from msocks.policy.model import LinkProfile, NoLink, Role, Rule
from msocks.policy.profiles import link_facts, profile_of
from msocks.policy.terms import PortRange, parse_selector, parse_term
from msocks.values.link import LinkKind

LINKS = ("wlan0", "wwan0")


def rule(name: str, *prefer: str, **fields) -> Rule:
    return Rule(name=name, prefer=tuple(parse_term(text) for text in prefer), **fields)


def only(*texts: str):
    return tuple(parse_selector(text) for text in texts)


@pytest.mark.parametrize(
    ("rules", "profiles", "key", "cause"),
    [
        ([rule("a", "wlan0", port=(PortRange(1, 1),)), rule("a", "wlan0")], [], "rule[1].name", "the name 'a' already"),
        ([rule("a", "wlan0"), rule("b", "wwan0", process=("x",))], [], "rule[1]", "rule[0] (a) matches everything"),
        (
            [
                rule("a", "wlan0", process=("x", "y"), destination=(ip_network("192.0.2.0/24"),)),
                rule("b", "wwan0", process=("y", "x"), destination=(ip_network("192.0.2.0/24"),)),
            ],
            [],
            "rule[1]",
            "rule[0] (a) matches the same flows",
        ),
        ([rule("a")], [], "rule[0]", "asks for nothing"),
        ([rule("a", "eth0")], [], "rule[0].prefer", "there is no link eth0"),
        ([rule("a", only=only("eth*", "wlan0"))], [], "rule[0].only", "there is no link eth*"),
        ([rule("a", roles=((parse_selector("x"), Role.NEVER),))], [], "rule[0].roles", "there is no link x"),
        ([], [LinkProfile("eth0")], "link.eth0", "there is no link eth0"),
        ([rule("a", "wlan0")], [LinkProfile("wl*", role=Role.NEVER)], "rule[0].prefer", "whose role is never"),
        (
            [rule("a", "wlan0", roles=((parse_selector("wlan*"), Role.NEVER),))],
            [],
            "rule[0].prefer",
            "whose role is never",
        ),
        ([rule("a", "wlan0", only=only("wwan0"))], [], "rule[0].prefer", "which `only` does not have"),
        ([rule("a", "wlan0", max_cost=1.0)], [LinkProfile("wlan0", cost=2.0)], "rule[0].prefer", "more than max_cost"),
        (
            [rule("a", max_cost=1.0)],
            [LinkProfile("wlan0", cost=2.0), LinkProfile("wwan0", role=Role.NEVER)],
            "rule[0]",
            "bars every link there is",
        ),
    ],
)
def test_each_is_found_and_nothing_else(rules: list[Rule], profiles: list[LinkProfile], key: str, cause: str):
    (found,) = contradictions(rules, profiles, LINKS)
    assert found.key == key
    assert cause in found.cause
    assert found.suggestion


@pytest.mark.parametrize(
    ("rules", "profiles", "links"),
    [
        ([rule("none", process=("x",)), rule("all", "lowest:rtt")], [], LINKS),  # the first is an exception
        ([rule("a", "eth0"), rule("b", "x", process=("x",))][:1], [LinkProfile("eth9")], None),  # may be plugged in
        ([rule("a", "wlan0", roles=((parse_selector("wlan0"), Role.ALWAYS),))], [LinkProfile("wlan0", role=Role.NEVER)],
         LINKS),
        # Only the kernel knows the kind.
        ([rule("a", "wlan0", roles=((parse_selector("kind:cellular"), Role.NEVER),))], [], LINKS),
        ([rule("a", only=only("kind:wifi"))], [], LINKS),
        ([rule("a", max_cost=0.0, no_link=NoLink.REFUSE)], [LinkProfile("*", cost=1.0)], LINKS),
    ],
)  # fmt: skip
def test_what_can_be_meant_is_left_alone(rules: list[Rule], profiles: list[LinkProfile], links):
    assert contradictions(rules, profiles, links) == []


def test_a_name_of_its_own_goes_before_a_glob():
    glob, own = LinkProfile("wl*", cost=1.0), LinkProfile("wlan0", cost=2.0)
    assert profile_of("wlan0", [glob, own]) is own
    assert profile_of("wlan1", [glob, own]) is glob
    assert profile_of("eth0", [glob, own]) == LinkProfile("eth0")


def test_what_the_user_says_goes_before_what_was_found_out():
    found: dict[str, Any] = {"usable": True, "state": "up", "rtt_ms": None, "rate_mbit": 3.0, "used_bytes": 7}
    plain = link_facts(LinkProfile("x"), "x", LinkKind.CELLULAR, **found)
    assert (plain.kind, plain.cost, plain.coverage, plain.rate_mbit) == (LinkKind.CELLULAR, 1.0, 3.0, 3.0)
    assert (plain.cap_bytes, plain.used_bytes) == (None, 0)
    said = LinkProfile("x", kind=LinkKind.WIFI, cost=0.5, rate_mbit=9.0, coverage=8.0, cap_mib=2)
    facts = link_facts(said, "x", LinkKind.CELLULAR, **found)
    assert (facts.kind, facts.cost, facts.coverage, facts.rate_mbit) == (LinkKind.WIFI, 0.5, 8.0, 9.0)
    assert (facts.cap_bytes, facts.used_bytes) == (2 * 1024 * 1024, 7)
