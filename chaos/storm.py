"""Lets a plan happen to a lab with the product in it."""

from __future__ import annotations

import heapq
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.world import BenchmarkError, Product

from benchmarks import world
from chaos import plan
from chaos.clock import SteppedClock
from chaos.plan import Cause, Disturbance
from chaos.traffic import Traffic, remains
from msocks_lab import CutMode, Lab, LabConfig, Link

_END_S = 150.0
_FORGOTTEN_S = 130.0  # so long Linux sends a FIN again that nobody acknowledges
_LOOK_S = 0.05

_CUTS = {
    Cause.CARRIER: CutMode.CARRIER,
    Cause.ADMIN: CutMode.ADMIN,
    Cause.SILENT: CutMode.SILENT,
    Cause.RESET: CutMode.RESET,
}

Action = Callable[[], object]


class Storm:
    """One run in a lab of its own."""

    def __init__(self, lab: Lab, clock: SteppedClock, datapath: str) -> None:
        self._lab = lab
        self._clock = clock
        self._datapath = datapath
        self._product = world.start_product(lab, datapath, wrapper=clock.wrapper)
        self._proxy = self._product.proxy
        self._due: list[tuple[float, int, str, Action]] = []
        self._numbers = itertools.count()
        self.happened: Counter[str] = Counter()

    @property
    def product(self) -> Product:
        """Proxy and agent as they were started."""
        return self._product

    def play(self, disturbances: list[Disturbance], traffic: Traffic) -> None:
        """All of it, in its time. Raises BenchmarkError where the product does not start again, LabError."""
        began = time.monotonic()
        for each in disturbances:
            act, undo = self._action(each)
            self._at(began + each.at, f"{each.cause} {each.link}".strip(), act)
            if undo is not None:
                self._at(began + each.at + each.lasts, "", undo)
            self.happened[each.cause] += 1
        while self._due:
            due, _, text, act = self._due[0]
            traffic.tend()
            left = due - time.monotonic()
            if left > 0:
                time.sleep(min(left, _LOOK_S))
                continue
            heapq.heappop(self._due)
            if text:
                print(f"  {due - began:7.2f}  {text}", flush=True)
            act()

    def _at(self, due: float, text: str, act: Action) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), text, act))

    def _action(self, each: Disturbance) -> tuple[Action, Action | None]:
        """How it is done, and undone."""
        if each.link:
            return self._action_on(self._lab.link(each.link), each)
        match each.cause:
            case Cause.NO_LINK:
                return self._cut_all, self._restore_all
            case Cause.AGENT_STOPPED:
                agent = self._product.agent
                return lambda: agent.send_signal(signal.SIGSTOP), lambda: agent.send_signal(signal.SIGCONT)
            case Cause.PROXY_KILLED:
                return self._kill_proxy, self._start_proxy
            case Cause.CLOCK:
                return lambda: self._clock.step(each.value), None
            case _:
                raise ValueError(f"{each.cause} of no link")

    def _action_on(self, link: Link, each: Disturbance) -> tuple[Action, Action | None]:
        match each.cause:
            case Cause.MOVE_ONE:
                return lambda: self._move_one(each), None
            case Cause.MOVE_ALL:
                return lambda: self._move("all", link), None
            case Cause.READDRESS:
                return link.readdress, None
            case Cause.REBIND:
                return link.rebind_nat, None
            case Cause.FAMILY:
                return lambda: link.lose_family(int(each.value)), link.regain_family
            case Cause.MTU:
                whole = next(config.mtu for config in self._lab.config.links if config.name == link.name)
                return lambda: link.set(mtu=min(whole, int(each.value))), lambda: link.set(mtu=whole)
            case Cause.LOSS:
                return lambda: link.set(loss_percent=each.value), lambda: link.set(loss_percent=0.0)
            case Cause.REORDER:
                return (
                    lambda: link.set(reorder_percent=each.value, duplicate_percent=each.value),
                    lambda: link.set(reorder_percent=0.0, duplicate_percent=0.0),
                )
            case _:
                return lambda: link.cut(_CUTS[each.cause]), link.restore

    def _move_one(self, each: Disturbance) -> None:
        done = self._product.msocks("flows", "--json")
        if done.returncode:
            raise BenchmarkError(f"msocks flows ended with {done.returncode}: {done.stderr.strip()}")
        live = [flow for flow in json.loads(done.stdout)["flows"] if flow["state"] == "live"]
        if live:
            self._move(live[int(each.value * len(live))]["id"], self._lab.link(each.link))

    def _move(self, flow: str, link: Link) -> None:
        """Begun and not waited for: it may not come about before the next disturbance."""
        environment = {"MSOCKS_CONTROL": str(self._product.control)}
        self._lab.mobile.popen([world.MSOCKS, "move", flow, "--to", link.name], env=environment)

    def _cut_all(self) -> None:
        for number, link in enumerate(self._lab.links):
            link.cut((CutMode.CARRIER, CutMode.SILENT)[number % 2])

    def _restore_all(self) -> None:
        for link in self._lab.links:
            link.restore()

    def _kill_proxy(self) -> None:
        self._proxy.kill()
        self._proxy.wait()

    def _start_proxy(self) -> None:
        state = world.state_of(self._lab)
        self._proxy = world.start_proxy(self._lab, state, self._datapath, wrapper=self._clock.wrapper)


def run(seed: int, seconds: float, sessions: int, datapath: str, logs: Path | None = None) -> dict[str, Any]:
    """One run; its raw result, with what was wrong in `problems`. Raises BenchmarkError, LabError."""
    began = time.monotonic()
    # What the relay holds dies with it.
    disturbances = plan.disturbances(seed, seconds, crashes=datapath == "splice")
    with Lab(LabConfig(plan.links(seed), seed=seed), directory=logs) as lab:
        world.start_pattern_server(lab)
        storm = Storm(lab, SteppedClock(lab.directory), datapath)
        storm.product.wait_links([link.name for link in lab.links])
        accepted = lab.server.accepted_connections()
        traffic = Traffic(lab, seed, sessions)
        problems = []
        try:
            storm.play(disturbances, traffic)
        except BenchmarkError as error:
            problems.append(str(error))
        traffic.finish(_END_S)
        connections = lab.server.accepted_connections() - accepted
        problems += [
            f"{ended.name}, {ended.transfer.kind}: {ended.problem}" for ended in traffic.ended if ended.problem
        ]
        if connections != len(traffic.ended):
            problems.append(f"the server accepted {connections} connections for {len(traffic.ended)} sessions")
        problems += [f"the server still has a connection: {text}" for text in remains(lab, _FORGOTTEN_S)]
        return {
            "seed": seed,
            "seconds": round(time.monotonic() - began, 1),
            "datapath": datapath,
            "disturbances": dict(storm.happened),
            "sessions": [ended.as_json() for ended in traffic.ended],
            "kinds": dict(Counter(ended.transfer.kind for ended in traffic.ended)),
            "bytes": sum(ended.bytes for ended in traffic.ended),
            "problems": problems,
        }
