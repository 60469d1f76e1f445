"""From the table ``[policy]`` to the policy, and from a changed file to another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from msocks.agent.policy_errors import PolicyProblem, PolicyRefused
from msocks.agent.policy_reload import NewPolicy
from msocks.agent.settings import AgentSettings
from msocks.cli.configuration.policy_models import PolicyLinkTable, PolicyRuleTable, PolicyTable
from msocks.cli.configuration.problems import InvalidConfiguration, Problem
from msocks.errors import ConfigurationError
from msocks.policy.contradictions import contradictions
from msocks.policy.decision import Policy
from msocks.policy.model import LinkProfile, Rule


def policy_of(table: PolicyTable, links: Sequence[str] | None, problems: list[Problem]) -> Policy:
    """The policy of a table; what cannot be meant as it stands is added to `problems`.

    Args:
        table: Each value of which is right.
        links: The interfaces that the agent may use, where the file says so.
        problems: Those found so far.
    """
    if table.link is None and table.rule is None:
        problems.append(Problem("policy", "has neither rules nor links", "give a [[policy.rule]], or leave it out"))
    rules = [_rule(each) for each in table.rule or []]
    profiles = [_profile(pattern, each) for pattern, each in (table.link or {}).items()]
    problems += [
        Problem(f"policy.{each.key}", each.cause, each.suggestion) for each in contradictions(rules, profiles, links)
    ]
    return Policy(rules, profiles, hold_down_s=table.hold_down_s)


class ConfigurationSource:
    """Reads the policy anew from the file that an agent was started with."""

    def __init__(self, file: Path, overrides: Mapping[str, Any], started_with: AgentSettings) -> None:
        """
        Args:
            file: The configuration.
            overrides: What the command line replaced in it.
            started_with: The settings that the agent has.
        """
        self.file = file
        self._overrides = dict(overrides)
        self._started_with = started_with

    def read(self) -> NewPolicy:
        """See `msocks.agent.policy_reload.PolicySource`."""
        from msocks.cli.configuration.load import agent_settings

        try:
            settings, _ = agent_settings(self.file, self._overrides)
        except InvalidConfiguration as error:
            problems = [PolicyProblem(each.key, each.cause, each.suggestion) for each in error.problems]
            count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise PolicyRefused(f"{error.source} has {count}", problems) from None
        except ConfigurationError as error:
            raise PolicyRefused(error.what, remedy=error.remedy) from None
        changed = tuple(
            f"agent.{each.name}"
            for each in fields(AgentSettings)
            if each.name != "policy" and getattr(settings, each.name) != getattr(self._started_with, each.name)
        )
        return NewPolicy(settings.policy, changed)


def _profile(pattern: str, table: PolicyLinkTable) -> LinkProfile:
    return LinkProfile(
        pattern=pattern,
        kind=table.kind,
        role=table.role,
        cost=table.cost,
        rate_mbit=table.rate_mbit,
        coverage=table.coverage,
        cap_mib=table.cap_mib,
        cap_day=table.cap_day,
    )


def _rule(table: PolicyRuleTable) -> Rule:
    return Rule(
        name=table.name,
        process=tuple(table.process or ()),
        user=tuple(table.user or ()),
        tag=tuple(table.tag or ()),
        source=tuple(table.source or ()),
        destination=tuple(table.destination or ()),
        port=tuple(table.port or ()),
        prefer=tuple(table.prefer or ()),
        roles=tuple((table.roles or {}).items()),
        only=tuple(table.only or ()),
        max_cost=table.max_cost,
        on_loss=table.on_loss,
        no_link=table.no_link,
    )
