"""Carries out the policy: gives each flow the links that `msocks.policy` decides on, whenever something changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from msocks.agent.any_flow import AnyFlow
from msocks.agent.link_meter import LinkMeter
from msocks.agent.link_picture import LinkPicture
from msocks.agent.policy_errors import LossEndsFlow, MoveForbidden, NoLinkAllowed
from msocks.client.network import Route, Routed
from msocks.client.node import MobileNode
from msocks.errors import LinkUnavailable, MsocksError
from msocks.policy.decision import Action, Decision, Explanation, Policy, decide, explain
from msocks.policy.model import NO_HAND, NO_RULE, FlowFacts, Hand, LinkFacts, Rule
from msocks.policy.ranking import barred
from msocks.session.mobile_effects import SessionState
from msocks.values.ids import SessionId
from msocks.values.origin import Origin

_TICK_S = 1.0
# How long a flow may stay on a link that it may not use any more while another is being tried.
_LEAVING_S = 5.0


@dataclass(slots=True, eq=False)
class _Steered:
    """What steering knows of one flow."""

    flow: AnyFlow
    facts: FlowFacts
    rule: Rule | None
    hand: Hand = NO_HAND
    at_once: bool = False  # somebody has just decided: no hold-down but what a link that has just come up needs
    short_hold_down: tuple[str, float] | None = None  # that of the best link, then
    leaving_since: float | None = None
    route: Route | None = None


@dataclass(slots=True)
class _Snapshot:
    """The links at one moment, and what was decided from them."""

    usable: tuple[str, ...]
    links: list[LinkFacts]
    decisions: dict[tuple[int, Hand, str | None], tuple[Rule | None, Decision]] = field(default_factory=dict)


class Steering:
    """The node's router; see the module. Make and use it on one event loop."""

    def __init__(self, node: MobileNode, policy: Policy, meter: LinkMeter) -> None:
        self._node = node
        self._policy = policy
        self._meter = meter
        self._picture = LinkPicture(node, meter, policy.links)
        self._loop: asyncio.AbstractEventLoop = node.reactor.loop
        self._flows: dict[SessionId, _Steered] = {}
        self._snapshot: _Snapshot | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.on_hand: Callable[[AnyFlow], None] = lambda flow: None
        """Called when somebody has decided about a flow."""
        node.router = self

    def start(self) -> None:
        """Begin to look at what is measured, once a second."""
        self._node.set_metered(self._picture.is_metered)
        self._tick()

    def close(self) -> None:
        """Look no more, and write down what was counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._meter.save()

    # -- flows ------------------------------------------------------------------------------------------------------

    def add(self, flow: AnyFlow, facts: FlowFacts, hand: Hand) -> None:
        """Steer a flow, before it begins."""
        steered = _Steered(flow, facts, self._policy.book.match(facts), hand)
        self._flows[flow.session] = steered
        self._name(steered)

    def forget(self, flow: AnyFlow) -> None:
        """The flow has ended."""
        self._flows.pop(flow.session, None)

    def asks_for_program(self, facts: FlowFacts) -> bool:
        """Whether a rule needs to know whose the flow is."""
        return self._policy.book.asks_for_program(facts)

    def set_origin(self, flow: AnyFlow, origin: Origin) -> None:
        """It is known now whose the flow is."""
        steered = self._flows.get(flow.session)
        if steered is not None:
            steered.facts = with_origin(steered.facts, origin)
            self._match(steered)

    def unknown(self, policy: Policy) -> list[AnyFlow]:
        """The flows of which `policy` needs to know whose they are."""
        return [
            steered.flow
            for steered in self._flows.values()
            if steered.facts.uid is None and policy.book.asks_for_program(steered.facts)
        ]

    def replace(self, policy: Policy) -> int:
        """Use another policy from now on. Flows that belong elsewhere by it move; returns how many other rules hold."""
        self._policy = policy
        self._picture.set_profiles(policy.links)
        self._node.set_metered(self._picture.is_metered)
        self._snapshot = None
        changed = sum(self._match(steered) for steered in list(self._flows.values()))
        self._reconsider_all(at_once=True)
        return changed

    def carried(self, flow: AnyFlow) -> None:
        """Another link carries the flow: what it may do next depends on that."""
        steered = self._flows.get(flow.session)
        if steered is not None:
            self._loop.call_soon(self._reconsider, steered)

    # -- what people ask --------------------------------------------------------------------------------------------

    def explain(self, flow: AnyFlow) -> Explanation:
        """What decides where a flow goes, and what else was considered."""
        steered = self._flows[flow.session]
        return explain(self._policy, steered.facts, steered.hand, self.links(), flow.connection.carried_by)

    def facts(self, flow: AnyFlow) -> FlowFacts:
        """What rules can know of a flow."""
        return self._flows[flow.session].facts

    def facts_if_known(self, flow: AnyFlow) -> FlowFacts | None:
        """The same; None of a flow that has ended."""
        steered = self._flows.get(flow.session)
        return None if steered is None else steered.facts

    def hand(self, flow: AnyFlow) -> Hand:
        """What people have said of a flow."""
        steered = self._flows.get(flow.session)
        return NO_HAND if steered is None else steered.hand

    def links(self) -> list[LinkFacts]:
        """The links as rules would see them this moment."""
        return self._picture.facts(self._node.usable_links, self._loop.time())

    def pin(self, flow: AnyFlow, link: str) -> None:
        """Let a flow use `link`, which exists, and no other, whatever the rules say."""
        self._set_hand(flow, pin=link, moved=None)

    def unpin(self, flow: AnyFlow) -> None:
        """Let the rules decide again, about a flow that was pinned or moved."""
        self._set_hand(flow, pin=None, moved=None)

    async def move(self, flow: AnyFlow, link: str) -> None:
        """Carry a flow over `link` and let it prefer that from now on, as far as the rules allow.

        Raises:
            MoveForbidden: They do not.
            LinkUnavailable: It cannot be used; the flow goes on where it was.
            SessionEnded: The flow is over.
        """
        steered = self._flows.get(flow.session)
        if steered is None:
            await flow.connection.move(link)
            return
        if steered.hand.pin not in (None, link):
            raise MoveForbidden(link, "", f"it is pinned to {steered.hand.pin}; unpin it first")
        if steered.hand.pin is None:
            known = next((each for each in self._now_known().links if each.name == link), None)
            found = None if known is None else barred(steered.rule or NO_RULE, known)
            if found is not None:
                raise MoveForbidden(link, (steered.rule or NO_RULE).name, found.reason)
        before = steered.hand
        steered.hand = replace(before, moved=link)
        self.on_hand(flow)
        if steered.route is not None and link not in steered.route.links:
            self._reconsider(steered)  # it waits for another link, and need not any more
        try:
            await flow.connection.move(link)
        except MsocksError:
            if steered.hand.moved == link:
                steered.hand = before
                self.on_hand(flow)
                self._reconsider(steered)
            raise

    def waits_for_policy(self, flow: AnyFlow) -> MsocksError | None:
        """Why a flow without a link has none, where it may not use those that there are."""
        steered = self._flows.get(flow.session)
        if steered is None or not self._node.usable_links or self._decision(steered).action is not Action.WAIT:
            return None
        if steered.hand.pin is not None:
            return LinkUnavailable(steered.hand.pin, "it is not up, and the flow is pinned to it")
        return NoLinkAllowed(str(flow.destination), (steered.rule or NO_RULE).name, barred=True)

    # -- Router -----------------------------------------------------------------------------------------------------

    def route(self, connection: Routed, usable: tuple[str, ...]) -> Route:
        """The links for a connection now; see `msocks.client.network.Router`."""
        steered = self._flows.get(connection.session)
        if steered is None:
            return Route(usable, self._policy.hold_down_s)
        decision = self._decision(steered)
        self._end_where_decided(steered, decision)
        if decision.leave:
            connection.release()  # from a preference for what it has to leave
        steered.route = self._route(steered, decision)
        return steered.route

    # -- inside -----------------------------------------------------------------------------------------------------

    def _decision(self, steered: _Steered) -> Decision:
        snapshot = self._now_known()
        key = id(steered.rule), steered.hand, steered.flow.connection.carried_by
        known = snapshot.decisions.get(key)
        if known is None:
            decision = decide(steered.rule, steered.hand, snapshot.links, key[2])
            known = snapshot.decisions[key] = steered.rule, decision
        return known[1]

    def _now_known(self) -> _Snapshot:
        usable = self._node.usable_links
        if self._snapshot is None or self._snapshot.usable != usable:
            self._snapshot = _Snapshot(usable, self._picture.facts(usable, self._loop.time()))
        return self._snapshot

    def _route(self, steered: _Steered, decision: Decision) -> Route:
        now, current = self._loop.time(), steered.flow.connection.carried_by
        order, hold_down_s = decision.order, self._policy.hold_down_s
        if decision.leave and steered.flow.connection.leg is not None:
            # Make before break: the old leg carries on until the new one stands, though not for long.
            if steered.leaving_since is None:
                steered.leaving_since = now
            if now - steered.leaving_since < _LEAVING_S and current in self._node.usable_links and current is not None:
                order = (*order, current)
            return Route(order, 0.0)
        steered.leaving_since = None
        if not order or order[0] == current:
            steered.at_once = False
            steered.short_hold_down = None
        elif steered.at_once:
            if steered.short_hold_down is None or steered.short_hold_down[0] != order[0]:
                left_s = max(0.0, hold_down_s - self._picture.usable_for_s(order[0], now))
                steered.short_hold_down = order[0], left_s
            hold_down_s = steered.short_hold_down[1]
        return Route(order, hold_down_s)

    def _end_where_decided(self, steered: _Steered, decision: Decision) -> None:
        flow, rule = steered.flow, steered.rule or NO_RULE
        error: MsocksError
        if decision.action is Action.RESET:
            error = LossEndsFlow(flow.connection.carried_by or "", rule.name)
        elif decision.action is Action.REFUSE:
            error = NoLinkAllowed(str(flow.destination), rule.name, barred=bool(self._node.usable_links))
        else:
            return
        self._loop.call_soon(self._end, flow, error)

    def _end(self, flow: AnyFlow, error: MsocksError) -> None:
        if flow.state is not SessionState.ENDED:
            flow.refuse(error)

    def _match(self, steered: _Steered) -> bool:
        before, steered.rule = steered.rule, self._policy.book.match(steered.facts)
        self._name(steered)
        return before != steered.rule

    def _name(self, steered: _Steered) -> None:
        steered.flow.rule = None if steered.rule is None else steered.rule.name
        steered.flow.pinned = steered.hand.pin

    def _set_hand(self, flow: AnyFlow, *, pin: str | None, moved: str | None) -> None:
        steered = self._flows.get(flow.session)
        if steered is None:
            return
        steered.hand = replace(steered.hand, pin=pin, moved=moved)
        steered.at_once = True
        flow.connection.release()
        self._name(steered)
        self.on_hand(flow)
        self._reconsider(steered)

    def _reconsider(self, steered: _Steered) -> None:
        """Offer a flow its links where they are not those that it was offered last."""
        flow = steered.flow
        if flow.session not in self._flows or flow.state is SessionState.ENDED:
            return
        offered = steered.route
        decision = self._decision(steered)
        if decision.action in (Action.RESET, Action.REFUSE) or self._route(steered, decision) != offered:
            self._node.offer(flow.connection)

    def _reconsider_all(self, *, at_once: bool = False) -> None:
        for steered in list(self._flows.values()):
            steered.at_once = steered.at_once or at_once
            self._reconsider(steered)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        self._meter.read(self._loop.time(), self._picture.metered())
        before, self._snapshot = self._snapshot, None
        if before is None or not self._decides_as(before):
            self._reconsider_all()

    def _decides_as(self, before: _Snapshot) -> bool:
        """Whether all that was decided then would be decided now, so that no flow need be looked at."""
        if len(before.decisions) > len(self._flows):
            return False  # flows that have ended left some behind
        now = self._now_known()
        for key, (rule, decision) in before.decisions.items():
            again = decide(rule, key[1], now.links, key[2])
            now.decisions[key] = rule, again
            if again != decision or again.leave:  # who leaves a link has a time limit
                return False
        return True


def with_origin(facts: FlowFacts, origin: Origin) -> FlowFacts:
    """What rules can know, with the program; a tag that is known stays."""
    return replace(
        facts,
        process=origin.process,
        user=origin.user,
        uid=origin.uid,
        tag=origin.tag or facts.tag,
        source=origin.source or facts.source,
    )
