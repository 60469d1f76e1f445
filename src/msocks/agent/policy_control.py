"""What the control API asks of the policy, as JSON. `docs/reference/control-api.md` is its manual."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msocks.agent.any_flow import AnyFlow
from msocks.agent.flow_table import FlowTable
from msocks.agent.policy_errors import PolicyProblem, PolicyRefused
from msocks.agent.policy_reload import PolicyReload
from msocks.agent.steering import Steering
from msocks.client.node import MobileNode
from msocks.errors import LinkUnavailable
from msocks.policy.decision import Explanation
from msocks.policy.model import FlowFacts


class PolicyControl:
    """Answers for one agent."""

    def __init__(self, node: MobileNode, flows: FlowTable, steering: Steering, reload: PolicyReload | None) -> None:
        self._node = node
        self._flows = flows
        self._steering = steering
        self._reload = reload

    def links(self) -> dict[str, dict[str, Any]]:
        """What rules see of each link besides its state."""
        return {
            link.name: {
                "kind": link.kind.value,
                "role": link.role.value,
                "rate_mbit": link.rate_mbit,
                "cost": link.cost,
                "coverage": link.coverage,
                "used_bytes": link.used_bytes if link.cap_bytes is not None else None,
                "cap_bytes": link.cap_bytes,
            }
            for link in self._steering.links()
        }

    def why(self, flow: AnyFlow) -> dict[str, Any]:
        """What decides about a flow, and what else was considered."""
        printed = self._flows.printed().get(flow.session, flow.session.short)
        names = {"id": printed, "session": flow.session.hex(), "destination": str(flow.destination)}
        running = {"state": flow.state.value, "link": flow.link, "pinned": flow.pinned}
        explanation = self._steering.explain(flow)
        return names | running | {"flow": _facts_as_json(self._steering.facts(flow))} | _why_as_json(explanation)

    async def move(self, flow: AnyFlow, link: str) -> None:
        """See `Steering.move`."""
        await self._steering.move(flow, link)

    def pin(self, flows: Iterable[AnyFlow], link: str) -> dict[str, Any]:
        """Pin flows to a link. Raises LinkUnavailable where it does not exist."""
        if link not in self._node.links:
            raise LinkUnavailable.unknown(link)
        pinned = list(flows)
        for flow in pinned:
            self._steering.pin(flow, link)
        return {"to": link, "flows": self._listed(pinned)}

    def unpin(self, flows: Iterable[AnyFlow]) -> dict[str, Any]:
        """Let the rules decide about flows again."""
        freed = list(flows)
        for flow in freed:
            self._steering.unpin(flow)
        return {"flows": self._listed(freed)}

    async def reload(self) -> dict[str, Any]:
        """Read the policy anew. Raises PolicyRefused where it cannot be used, or came from no file."""
        if self._reload is None:
            raise PolicyRefused("the agent was started without a configuration file", remedy="give it --config FILE")
        done = await self._reload.reload()
        return {
            "rules": done.rules,
            "changed_flows": done.changed_flows,
            "needs_restart": list(done.needs_restart),
        }

    def _listed(self, flows: Sequence[AnyFlow]) -> list[dict[str, str]]:
        printed = self._flows.printed()
        return [{"id": printed.get(flow.session, flow.session.short), "session": flow.session.hex()} for flow in flows]


def problems_as_json(problems: Iterable[PolicyProblem]) -> dict[str, Any]:
    """What is wrong with a configuration."""
    return {
        "problems": [
            {"key": problem.key, "cause": problem.cause, "suggestion": problem.suggestion} for problem in problems
        ]
    }


def _facts_as_json(facts: FlowFacts) -> dict[str, Any]:
    return {
        "process": facts.process,
        "user": facts.user,
        "uid": facts.uid,
        "tag": facts.tag,
        "source": None if facts.source is None else str(facts.source),
    }


def _why_as_json(explanation: Explanation) -> dict[str, Any]:
    decision = explanation.decision
    return {
        "action": decision.action.value,
        "decided_by": decision.ground.value,
        "rule": decision.rule or None,
        "order": list(decision.order),
        "links": [
            {
                "name": verdict.link,
                "allowed": verdict.allowed,
                "usable": verdict.usable,
                "reason": verdict.reason,
            }
            for verdict in explanation.links
        ],
        "passed_over": [{"rule": rule, "does_not_fit": list(fields)} for rule, fields in explanation.passed_over],
        "also_matching": list(explanation.also_matching),
    }
