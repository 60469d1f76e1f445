"""The table [policy]: what it becomes, every mistake in it, and the example of the manual as it is written there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import CommandLine

from msocks.cli.configuration.load import check_file
from msocks.cli.configuration.problems import InvalidConfiguration
from msocks.policy.decision import Action, Policy, decide
from msocks.policy.model import NO_HAND, FlowFacts, LinkProfile, NoLink, OnLoss, Role
from msocks.policy.profiles import link_facts, profile_of
from msocks.policy.terms import PortRange, Quantity
from msocks.values.link import LinkKind

MANUAL = Path(__file__).parents[2] / "docs" / "how-to" / "policy.md"


def load(directory: Path, text: str) -> Policy:
    file = directory / "policy.toml"
    file.write_text(text)
    policy = check_file(file).policy
    assert policy is not None
    return policy


def problems(directory: Path, text: str) -> list[tuple[str, str]]:
    with pytest.raises(InvalidConfiguration) as refused:
        load(directory, text)
    assert all(problem.suggestion for problem in refused.value.problems)
    return [(problem.key, problem.cause) for problem in refused.value.problems]


def examples() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", MANUAL.read_text(), re.DOTALL)


def test_every_key_arrives(tmp_path: Path):
    policy = load(
        tmp_path,
        """
        [policy]
        hold_down_s = 3
        [policy.link."wwan*"]
        kind = "cellular"
        role = "backup"
        cost = 2.5
        rate_mbit = 30
        coverage = 4
        cap_mib = 100
        cap_day = 12
        [[policy.rule]]
        name = "one"
        process = ["ssh*"]
        user = ["alice", "1000"]
        tag = ["t"]
        destination = ["*.Example.", "192.0.2.0/24", "2001:db8::1"]
        port = [22, "80-90"]
        prefer = ["wlan0", "kind:wifi", "lowest:rtt"]
        roles = { "kind:ethernet" = "never" }
        only = ["w*"]
        max_cost = 3
        on_loss = "wait"
        no_link = "refuse"
        """,
    )
    assert policy.hold_down_s == 3
    assert policy.links == (
        LinkProfile("wwan*", LinkKind.CELLULAR, Role.BACKUP, 2.5, 30.0, 4.0, cap_mib=100, cap_day=12),
    )
    (rule,) = policy.rules
    assert (rule.name, rule.process, rule.user, rule.tag) == ("one", ("ssh*",), ("alice", "1000"), ("t",))
    assert rule.destination == ("*.example", ip_network("192.0.2.0/24"), ip_network("2001:db8::1/128"))
    assert rule.port == (PortRange(22, 22), PortRange(80, 90))
    assert [getattr(term, "text", term) for term in rule.prefer] == ["wlan0", "kind:wifi", Quantity.LOWEST_RTT]
    assert [(selector.text, role) for selector, role in rule.roles] == [("kind:ethernet", Role.NEVER)]
    assert ([selector.text for selector in rule.only], rule.max_cost) == (["w*"], 3.0)
    assert (rule.on_loss, rule.no_link) == (OnLoss.WAIT, NoLink.REFUSE)


@pytest.mark.parametrize(
    ("text", "key", "cause"),
    [
        ("[policy]", "policy", "has neither rules nor links"),
        ("[policy]\nrule = []", "policy.rule", "needs at least one entry"),
        ("[policy]\nhold_down_s = -1\n[policy.link.x]", "policy.hold_down_s", "at least 0"),
        ("[policy]\nhold_down_s = inf\n[policy.link.x]", "policy.hold_down_s", "has to be a number"),
        ("[[policy.rule]]\nprefer = ['a']", "policy.rule[0].name", "is missing"),
        ("[[policy.rule]]\nname = ''", "policy.rule[0].name", "is no name"),
        ("[[policy.rule]]\nname = 'a'\nproces = ['x']", "policy.rule[0].proces", "there is no such key"),
        ("[[policy.rule]]\nname = 'a'\nprocess = []", "policy.rule[0].process", "needs at least one entry"),
        ("[[policy.rule]]\nname = 'a'\nprocess = ['/bin/x']", "policy.rule[0].process[0]", "no name of a process"),
        ("[[policy.rule]]\nname = 'a'\nprocess = ['chromium-browser']", "policy.rule[0].process[0]", "keeps 15 bytes"),
        ("[[policy.rule]]\nname = 'a'\ndestination = ['a b']", "policy.rule[0].destination[0]", "neither a name nor"),
        ("[[policy.rule]]\nname = 'a'\ndestination = ['10.1.2.3/8']", "policy.rule[0].destination[0]", "10.1.2.3/8"),
        ("[[policy.rule]]\nname = 'a'\nport = [0]", "policy.rule[0].port[0]", "no range of ports"),
        ("[[policy.rule]]\nname = 'a'\nport = ['9-3']", "policy.rule[0].port[0]", "no range of ports"),
        ("[[policy.rule]]\nname = 'a'\nport = [true]", "policy.rule[0].port[0]", "no port"),
        ("[[policy.rule]]\nname = 'a'\nport = ['1-']", "policy.rule[0].port[0]", "no port"),
        ("[[policy.rule]]\nname = 'a'\nprefer = ['lowest:price']", "policy.rule[0].prefer[0]", "no preference"),
        ("[[policy.rule]]\nname = 'a'\nprefer = ['kind:fibre']", "policy.rule[0].prefer[0]", "there is no"),
        ("[[policy.rule]]\nname = 'a'\nonly = ['lowest:rtt']", "policy.rule[0].only[0]", "names no link"),
        ("[[policy.rule]]\nname = 'a'\nroles = {w = 'x'}", "policy.rule[0].roles.w", "no role 'x'"),
        ("[[policy.rule]]\nname = 'a'\nmax_cost = -1", "policy.rule[0].max_cost", "at least 0"),
        ("[[policy.rule]]\nname = 'a'\non_loss = 'x'", "policy.rule[0].on_loss", "no on_loss 'x'"),
        ("[[policy.rule]]\nname = 'a'\nno_link = 1", "policy.rule[0].no_link", "written as a string"),
        ("[policy.link.x]\ncap_day = 29", "policy.link.x.cap_day", "29"),
        ("[policy.link.x]\ncap_mib = 0", "policy.link.x.cap_mib", "at least 1"),
        ("[policy.link.'a b']", "policy.link.a b", "cannot be the name"),
        ("[[policy.rule]]\nname = 'a'", "policy.rule[0]", "asks for nothing"),
    ],
)
def test_a_mistake_is_told_with_its_key(tmp_path: Path, text: str, key: str, cause: str):
    ((found_key, found_cause),) = problems(tmp_path, text)
    assert found_key == key
    assert cause in found_cause


def test_all_mistakes_are_told_at_once_those_of_other_tables_too(tmp_path: Path, msocks: CommandLine):
    (tmp_path / "agent.toml").write_text(
        """
        [agent]
        access_link = "nonsense"
        links = ["wlan0"]
        [[policy.rule]]
        name = "a"
        prefer = ["eth0"]
        [[policy.rule]]
        name = "a"
        max_cost = 0
        """
    )
    done = msocks("check-config", "agent.toml", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["valid"]) == (4, False)
    assert [problem["key"] for problem in answer["problems"]] == [
        "agent.access_link",
        "policy.rule[1].name",
        "policy.rule[1]",
        "policy.rule[0].prefer",
    ]


def test_a_policy_alone_is_a_file_that_is_right(tmp_path: Path, msocks: CommandLine):
    (tmp_path / "policy.toml").write_text(examples()[0])
    assert msocks("check-config", "policy.toml").stdout == "policy.toml is right; it configures the policy\n"
    done = msocks("agent", "--config", "policy.toml", "--listen", "127.0.0.1:0")
    assert (done.returncode, "there is no access to a proxy" in done.stderr) == (4, True)


# -- the manual -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(examples())))
def test_every_example_of_the_manual_is_right(tmp_path: Path, number: int):
    load(tmp_path, examples()[number])


def test_the_example_of_the_paper_does_what_the_manual_says(tmp_path: Path):
    policy = load(tmp_path, examples()[0])
    found: dict[str, Any] = {"usable": True, "state": "up", "used_bytes": 0}
    wifi, cell, wire = (
        link_facts(profile_of(name, policy.links), name, kind, rtt_ms=rtt_ms, rate_mbit=rate_mbit, **found)
        for name, kind, rtt_ms, rate_mbit in [
            ("wlan0", LinkKind.WIFI, 30.0, 200.0),
            ("wwan0", LinkKind.CELLULAR, 15.0, 300.0),
            ("eth0", LinkKind.ETHERNET, 40.0, 90.0),
        ]
    )
    streams = {name: FlowFacts("hall.lecture.example", port) for name, port in
               [("video", 5004), ("audio", 5006), ("transcript", 443)]}  # fmt: skip

    def goes(links, current: str | None = None) -> dict[str, object]:
        decisions = {name: decide(policy.book.match(flow), NO_HAND, links, current) for name, flow in streams.items()}
        assert {name: decision.rule for name, decision in decisions.items()} == {name: name for name in streams}
        return {
            name: decision.order[0] if decision.action is Action.USE else decision.action
            for name, decision in decisions.items()
        }

    # The video on the fattest of those that cost nothing, although LTE is fatter.
    assert goes([wifi, cell, wire]) == {"video": "wlan0", "audio": "wwan0", "transcript": "wwan0"}
    assert goes([replace(wifi, rate_mbit=20.0), cell, wire])["video"] == "eth0"
    # Without a cheap link there is no video at all: none begins, and one that runs waits. The others go on.
    without = [replace(wifi, usable=False), cell]
    assert goes(without) == {"video": Action.REFUSE, "audio": "wwan0", "transcript": "wwan0"}
    assert goes(without, "wlan0") == {"video": Action.WAIT, "audio": "wwan0", "transcript": "wwan0"}
    # Without LTE the quickest of the others, and the widest of the others.
    assert goes([wifi, replace(cell, usable=False), wire]) == {
        "video": "wlan0", "audio": "wlan0", "transcript": "wlan0",
    }  # fmt: skip
    assert policy.book.match(FlowFacts("elsewhere.example", 5004)) is None
