"""The agent: local port, flows, control API and mobile node in one process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from msocks.agent.answers import ConnectTimeout, Overload
from msocks.agent.any_flow import AnyFlow
from msocks.agent.binds import Binds
from msocks.agent.control_api import ControlApi
from msocks.agent.control_json import error_as_json
from msocks.agent.control_path import RUN_SUFFIX, SESSIONS_SUFFIX, default_control_paths
from msocks.agent.event_feed import EventFeed, FlowEvent, FlowEventKind
from msocks.agent.farewell import Farewells
from msocks.agent.flow import Flow
from msocks.agent.flow_keeper import FlowKeeper
from msocks.agent.flow_origin import facts_of, hand_of
from msocks.agent.flow_table import FlowTable
from msocks.agent.link_meter import LinkMeter
from msocks.agent.local_port import LocalPort, ProgramRequest
from msocks.agent.policy_control import PolicyControl
from msocks.agent.policy_reload import PolicyReload, PolicySource
from msocks.agent.program_lookup import ProgramLookup
from msocks.agent.run_port import RunPort
from msocks.agent.settings import AgentSettings
from msocks.agent.state_path import default_state_directory
from msocks.agent.steering import Steering
from msocks.agent.udp_flow import UdpFlow
from msocks.client.node import MobileNode
from msocks.errors import LinkUnavailable, MsocksError
from msocks.interception.messages import Run
from msocks.policy.decision import Policy
from msocks.policy.model import Hand
from msocks.protocol.socks5_wire import Command
from msocks.session.byte_budget import ByteBudget
from msocks.session.mobile_effects import Carried, SessionState
from msocks.transport import service_manager
from msocks.transport.deadlines import Deadlines
from msocks.transport.descriptor_limit import raise_descriptor_limit
from msocks.transport.garbage import spare_collections
from msocks.values.endpoint import Endpoint
from msocks.values.origin import Origin
from msocks.version import __version__

_log = structlog.get_logger("msocks.agent")

_MIB = 1024 * 1024


class Agent:
    """See the module. Make and use it on one event loop."""

    def __init__(self, settings: AgentSettings, source: PolicySource | None = None) -> None:
        """`source` is where the policy is read anew; without one it stays what it is in `settings`."""
        self.settings = settings
        self._started_at = time.time()
        self.control = Path(settings.control or default_control_paths()[0])
        self.node = MobileNode(
            settings.access, links=settings.links, agent_name="msocks agent", spare_legs=settings.spare_legs
        )
        loop = self.node.reactor.loop
        self.flows = FlowTable(loop, settings.limits)
        self.events = EventFeed()
        self._budget = ByteBudget(settings.limits.held_mib * _MIB)
        self._farewells = Farewells(self.node.reactor)
        self._binds = Binds(self.node, self._farewells, self._on_request)
        self._port = LocalPort(self.node.reactor, settings.limits, self._farewells, self._binds.on_request)
        self._runs = RunPort(
            self.node.reactor,
            settings.access.addresses,
            self._check_run,
            self._on_request,
            reaches=lambda: self.node.authorised and bool(self.node.usable_links),
            on_router_ended=self._reset_routed,
        )
        self._connecting = Deadlines[AnyFlow](
            loop, settings.limits.connect_timeout_s, self._on_connect_timeout, limit=settings.limits.flows
        )
        state = default_state_directory() if settings.state is None else Path(settings.state)
        self.steering = Steering(self.node, settings.policy, LinkMeter(state))
        self.steering.on_hand = self._on_hand
        self._keeper = FlowKeeper(
            self.node, Path(f"{self.control}{SESSIONS_SUFFIX}"), settings.limits.flows, self._said_of
        )
        self._programs = ProgramLookup()
        self._looking: set[asyncio.Task[None]] = set()
        self.reload = None if source is None else PolicyReload(source, self.use_policy)
        policy_control = PolicyControl(self.node, self.flows, self.steering, self.reload)
        self._api = ControlApi(self.node, self.flows, self.events, self.status, policy_control)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where programs can connect."""
        return self._port.endpoints

    def status(self) -> dict[str, Any]:
        """How the agent is doing, as the control API shows it."""
        access = self.settings.access
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self._started_at, 3),
            "user": access.user,
            "proxy": [str(endpoint) for endpoint in access.addresses],
            "authorised": self.node.authorised,
            "problem": error_as_json(self.node.problem),
            "listen": [str(endpoint) for endpoint in self.endpoints],
            "control": str(self.control),
            "links": {name: link.state.value for name, link in self.node.links.items()},
            "flows": {state.value: count for state, count in self.flows.per_state().items()},
            "handshakes": self._port.handshakes,
            "runs": self._runs.runs,
        }

    async def start(self) -> None:
        """Accept programs; returns at once, whether there is a network or not.

        Raises:
            ConfigurationError: The local port or the control socket cannot be had.
            OSError: The kernel gives no netlink.
        """
        try:
            self._port.open(self.settings.listen, allow_remote=self.settings.allow_remote)
            await self._api.start(self.control)
            self._runs.open(Path(f"{self.control}{RUN_SUFFIX}"))
            self._keeper.open()
            self._adopt()
            await self.node.start()
            self.steering.start()
            if self.reload is not None:
                self.reload.start()
        except BaseException:
            await self.close()
            raise
        if self.settings.allow_remote:
            _log.warning(
                "remote_programs_allowed",
                remedy="whoever reaches this port uses your access: keep others out with a firewall",
                listen=[str(endpoint) for endpoint in self.endpoints],
            )

    async def close(self) -> None:
        """Stop accepting, reset every flow at both ends, say goodbye to the proxy; takes some 4 s at most."""
        self._port.close()
        self._binds.close()
        self._runs.close()
        if self.reload is not None:
            await self.reload.close()
        for task in self._looking:
            task.cancel()
        await self._programs.close()
        for flow in self.flows:
            flow.reset()
        self.steering.close()
        await self.node.close()
        self.events.close()
        await self._api.close()
        self._connecting.take_all()
        self._farewells.close()
        self.flows.close()
        self._keeper.close()

    async def leave(self) -> None:
        """Stop, and let the next agent take the flows up; where nobody stores them, as `close`."""
        if not self._keeper.keeps:
            await self.close()
            return
        self._port.close()
        self._binds.close()
        self._runs.close()
        self.steering.close()
        await self._api.close()
        self._keeper.leave()

    def _adopt(self) -> None:
        """Take up what an earlier agent has left."""
        adopted = set()
        for kept in self._keeper.adopt():
            request = kept.request()
            try:
                flow = Flow(self.node, request, self, self._farewells, self._budget, kept)
            except ValueError as error:  # a ring of another state than the counters
                _log.warning("flow_not_taken_up", destination=str(request.destination), reason=str(error))
                kept.drop()
                continue
            self.flows.add(flow)
            self.steering.add(flow, facts_of(request), kept.hand)
            adopted.add(flow.session)
            flow.resume(kept)
            _log.info("flow_taken_up", **self._names(flow), state=flow.state.value, link=flow.link)
        self._keeper.close_left(adopted)
        for session in adopted:
            self._keeper.opened(session)

    def _said_of(self, flow: Flow) -> tuple[Hand, Origin]:
        origin = flow.view().origin
        if origin.uid is None and (facts := self.steering.facts_if_known(flow)) is not None:
            origin = Origin(facts.process, None, facts.user, facts.uid, facts.tag, facts.source)
        return self.steering.hand(flow), origin

    def _on_hand(self, flow: AnyFlow) -> None:
        if isinstance(flow, Flow):
            flow.note_hand()

    # -- programs ---------------------------------------------------------------------------------------------------

    def _check_run(self, run: Run) -> None:
        """Raises MsocksError where what its user wishes cannot be."""
        self._check_hand(hand_of(run.wish))

    def _reset_routed(self) -> None:
        """What comes from the other hosts is forwarded again, past their flows."""
        for flow in list(self.flows):
            if flow.state is not SessionState.ENDED and flow.view().origin.source is not None:
                flow.reset()

    def _check_hand(self, hand: Hand) -> None:
        if hand.pin is not None and hand.pin not in self.node.links:
            raise LinkUnavailable.unknown(hand.pin)

    def _on_request(self, request: ProgramRequest) -> None:
        try:
            if self.flows.is_full:
                raise Overload(self.settings.limits.flows)
            facts, hand = facts_of(request), hand_of(request.wish)
            self._check_hand(hand)
        except MsocksError as error:
            log = _log.warning if isinstance(error, Overload) else _log.info
            log("program_refused", destination=str(request.destination), reason=str(error))
            self._farewells.say(request.sock, request.dialogue.refuse(error))
            return
        flow: AnyFlow
        if request.command is Command.UDP_ASSOCIATE:
            flow = UdpFlow(self.node, request, self, self._farewells)
        else:
            flow = Flow(self.node, request, self, self._farewells, self._budget, self._keeper.new(request))
            self._keeper.opened(flow.session)
        self.flows.add(flow)
        self.steering.add(flow, facts, hand)
        self._connecting.add(flow)
        _log.debug("flow_opened", **self._names(flow), protocol=request.dialogue.name)
        self._tell(FlowEventKind.OPENED, flow)
        if request.origin is None and self.steering.asks_for_program(facts):
            task = self.node.reactor.loop.create_task(self._begin_known(flow))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)
        else:
            flow.begin()

    async def _begin_known(self, flow: AnyFlow) -> None:
        """Begin a flow when it is known whose it is."""
        self.steering.set_origin(flow, await self._programs.origin_of(flow.program))
        if flow.state is not SessionState.ENDED:
            flow.begin()

    async def use_policy(self, policy: Policy) -> int:
        """Let another policy hold from now on; returns for how many flows another rule holds than before."""
        unknown = self.steering.unknown(policy)
        origins = await asyncio.gather(*(self._programs.origin_of(flow.program) for flow in unknown))
        for flow, origin in zip(unknown, origins, strict=True):
            self.steering.set_origin(flow, origin)
        return self.steering.replace(policy)

    def _on_connect_timeout(self, flow: AnyFlow) -> None:
        flow.refuse(
            self.steering.waits_for_policy(flow)
            or ConnectTimeout(
                str(flow.destination),
                self.settings.limits.connect_timeout_s,
                problem=self.node.problem,
                no_network=not self.node.authorised or not self.node.usable_links,
            )
        )

    # -- FlowOwner --------------------------------------------------------------------------------------------------

    def on_connected(self, flow: AnyFlow, carried: Carried) -> None:
        self._connecting.discard(flow)
        self.steering.carried(flow)
        _log.debug("flow_connected", **self._names(flow), link=carried.link)
        self._tell_carried(flow, carried)

    def on_moved(self, flow: AnyFlow, carried: Carried) -> None:
        self.steering.carried(flow)
        _log.info(
            "flow_moved", **self._names(flow), cause=carried.cause.value, from_link=carried.from_link, to=carried.link
        )
        self._tell_carried(flow, carried)

    def on_parked(self, flow: AnyFlow) -> None:
        _log.info("flow_parked", **self._names(flow))
        self._tell(FlowEventKind.PARKED, flow)

    def on_ended(self, flow: AnyFlow) -> None:
        view = flow.view()
        never_stood = self._connecting.discard(flow)
        self.steering.forget(flow)
        self._keeper.ended(flow.session)
        totals = {"moves": view.moves, "up": view.bytes_up, "down": view.bytes_down}
        if view.error is None:
            _log.debug("flow_ended", **self._names(flow), **totals)
        elif never_stood:
            _log.info("flow_refused", **self._names(flow), reason=str(view.error))
        else:
            _log.info("flow_ended", **self._names(flow), **totals, reason=str(view.error))
        self._tell(FlowEventKind.ENDED, flow, error=error_as_json(view.error))

    def on_closed(self, flow: AnyFlow) -> None:
        self.flows.retire(flow)

    def _names(self, flow: AnyFlow) -> dict[str, str]:
        return {"flow": flow.session.short, "destination": str(flow.destination)}

    def _tell_carried(self, flow: AnyFlow, carried: Carried) -> None:
        self._tell(
            FlowEventKind.CARRIED,
            flow,
            cause=carried.cause.value,
            generation=carried.generation,
            to=carried.link,
            **{"from": carried.from_link},
        )

    def _tell(self, kind: FlowEventKind, flow: AnyFlow, **details: object) -> None:
        if self.events.heard:
            printed = self.flows.printed().get(flow.session, flow.session.short)
            names = {"id": printed, "session": flow.session.hex(), "destination": str(flow.destination)}
            self.events.publish(FlowEvent(kind, names | details))


async def run_agent(settings: AgentSettings, on_ready: Callable[[], None], source: PolicySource | None = None) -> None:
    """Run an agent until SIGTERM or SIGINT. `on_ready` is called when programs can connect.

    SIGHUP reads the policy anew from `source`. SIGUSR2 ends the agent and leaves its flows to the next one, where the
    service manager stores them.

    Raises:
        ConfigurationError: The local port or the control socket cannot be had.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    leaving = asyncio.Event()

    def leave() -> None:
        leaving.set()
        stopping.set()

    loop.add_signal_handler(signal.SIGUSR2, leave)
    agent = Agent(settings, source)
    if agent.reload is not None:
        loop.add_signal_handler(signal.SIGHUP, agent.reload.reload_soon)
    await agent.start()
    spare_collections()
    _log.info(
        "ready",
        listen=[str(endpoint) for endpoint in agent.endpoints],
        control=str(agent.control),
        user=settings.access.user,
        proxy=[str(endpoint) for endpoint in settings.access.addresses],
        pid=os.getpid(),
    )
    on_ready()
    service_manager.notify(service_manager.READY)
    await stopping.wait()
    service_manager.notify(service_manager.STOPPING)
    live = sum(1 for flow in agent.flows if flow.state is not SessionState.ENDED)
    _log.info("stopping", flows=live)
    await (agent.leave() if leaving.is_set() else agent.close())


def run(settings: AgentSettings, on_ready: Callable[[], None], source: PolicySource | None = None) -> None:
    """`run_agent` in an event loop of its own: uvloop's where it is installed."""
    raise_descriptor_limit()  # a flow needs two, four while it moves
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(run_agent(settings, on_ready, source))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
