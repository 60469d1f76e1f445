"""Many sessions moved again and again for random causes, under load: every byte has to be right, no session lost.

    python -m benchmarks.moves [--moves 500] [--sessions 28] [--crashes 0] [--seed N]

`make soak` runs this, too. The seed decides what happens in which order; it is printed. With `--crashes` the proxy is
killed so often (SIGKILL), in the middle of whatever happens, and started again; its datapath is the splice then.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import world
from benchmarks.world import AGENT_PORT, BenchmarkError, Product
from msocks_lab import STANDARD_LAB, CutMode, Lab, LabError, LabProcess, Link, measurement_lock

MOVES = 500
SESSIONS = 28  # at a time; several may end between two looks
FEWEST_SESSIONS = 20  # without so many nothing happens
_PIECE_BYTES = 12_000_000  # of each session in each of its directions
_PAUSE_S = (0.2, 1.5)  # between events
_LONGEST_END_S = 300.0
_STUCK_S = 120.0  # without a single move
_KILL_AFTER_S = (0.0, 1.5)  # the event has begun
_PROXY_GONE_S = (0.0, 1.5)


@dataclass(slots=True)
class Session:
    """One transfer; `error` is empty where every byte was right."""

    number: int
    direction: str
    client: LabProcess
    began: float
    seconds: float | None = None
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """What the raw result keeps."""
        return {
            "number": self.number,
            "direction": self.direction,
            "seconds": self.seconds,
            "error": self.error,
        }


@dataclass(slots=True)
class Storm:
    """What happens to the network, and what becomes of the sessions."""

    lab: Lab
    product: Product
    chance: random.Random
    sessions: int
    datapath: str
    crashes: int = 0
    running: list[Session] = field(default_factory=list)
    ended: list[Session] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    _moves: dict[str, int] = field(default_factory=dict)  # by session id
    _proxy: LabProcess = field(init=False)
    _flows: list[dict[str, Any]] = field(default_factory=list)
    killed: int = 0

    @property
    def moves(self) -> int:
        """Session-moves so far, as `msocks flows` counts them."""
        return sum(self._moves.values())

    def play(self, moves: int) -> None:
        """Cause events until there were so many session-moves, then let all sessions end. Raises BenchmarkError."""
        self._proxy = self.product.proxy
        self._tend(start=True)
        world.wait_for(lambda: len(self._observe()) >= self.sessions, "the sessions to begin", 30.0)
        latest, at = 0, time.monotonic()
        while self.moves < moves or self.killed < self.crashes:
            # Many may have ended together, and on a busy machine it takes a while until others have begun.
            world.wait_for(self._are_enough, "others to begin in place of the sessions that have ended", 60.0)
            if self.killed * moves < self.crashes * self.moves or self.moves >= moves:
                self._cause_something_and_crash()
            else:
                self._cause_something()
            self._observe()
            if self.moves > latest:
                latest, at = self.moves, time.monotonic()
            elif time.monotonic() > at + _STUCK_S:
                raise BenchmarkError(f"No session has moved for {_STUCK_S:.0f} s")
            time.sleep(self.chance.uniform(*_PAUSE_S))
        deadline = time.monotonic() + _LONGEST_END_S
        while self.running and time.monotonic() < deadline:
            self._observe()
            self._tend(start=False)
            time.sleep(0.5)
        for session in self.running:
            session.client.kill()
            session.error = f"it did not end within {_LONGEST_END_S:.0f} s after the last event"
        self.ended += self.running
        self.running = []

    def _are_enough(self) -> bool:
        self._tend(start=True)
        return len(self._observe()) >= min(FEWEST_SESSIONS, self.sessions)

    def _tend(self, *, start: bool) -> None:
        """Take what has ended, and start as many anew."""
        for session in [session for session in self.running if session.client.poll() is not None]:
            self.running.remove(session)
            self.ended.append(session)
            session.seconds = round(time.monotonic() - session.began, 1)
            session.error = world.result_of(session.client, 1.0)["error"]
            if session.error:
                print(f"     session {session.number} ({session.direction}): {session.error}", flush=True)
        while start and len(self.running) < self.sessions:
            self._start_session()

    def _start_session(self) -> None:
        number = len(self.running) + len(self.ended)
        direction = ("download", "upload", "both")[number % 3]
        ways = [way for way in ("download", "upload") if direction in (way, "both")]
        amounts = [word for way in ways for word in (f"--{way}", str(_PIECE_BYTES))]
        seed = str(self.chance.randrange(1 << 30))
        client = world.bulk_client(
            self.lab, *amounts, "--seed", seed, "--timeout", "120", "--socks", f"127.0.0.1:{AGENT_PORT}"
        )
        self.running.append(Session(number, direction, client, time.monotonic()))

    def _observe(self) -> list[dict[str, Any]]:
        """The flows that have not ended."""
        flows = self.product.listed("flows")
        self._moves |= {flow["session"]: flow["moves"] for flow in flows}
        self._flows = [flow for flow in flows if flow["state"] != "ended"]
        return self._flows

    def _cause_something(self) -> None:
        concurrent = len(self._observe())
        causes: list[tuple[str, int, Callable[[], object]]] = [
            ("msocks move, one session", 6, self._move_one),
            ("msocks move, all", 2, self._move_all),
            ("link down", 2, lambda: self._cut(CutMode.CARRIER, 0.3, 2.0)),
            ("link set down", 1, lambda: self._cut(CutMode.ADMIN, 0.3, 2.0)),
            ("silent link", 2, lambda: self._cut(CutMode.SILENT, 0.3, 3.0)),
            ("connections reset", 1, lambda: self._cut(CutMode.RESET, 0.1, 0.5)),
            ("no link", 1, self._no_link),
            ("new address", 1, lambda: self._any_link().readdress()),
        ]
        name, _, act = self.chance.choices(causes, [weight for _, weight, _ in causes])[0]
        before = self.moves
        self.events.append({"event": len(self.events) + 1, "cause": name, "concurrent": concurrent, "moves": before})
        act()
        if len(self.events) % 10 == 0:
            print(
                f"  {len(self.events):4} events, {before:5} session-moves, {len(self.ended)} sessions ended", flush=True
            )

    def _cause_something_and_crash(self) -> None:
        """Kill the proxy while something happens, and start the next one after a while."""
        wait_s, gone_s = self.chance.uniform(*_KILL_AFTER_S), self.chance.uniform(*_PROXY_GONE_S)
        failures: list[BaseException] = []

        def crash() -> None:
            try:
                time.sleep(wait_s)
                self._proxy.kill()
                self._proxy.wait()
                time.sleep(gone_s)
                self._proxy = world.start_proxy(self.lab, world.state_of(self.lab), self.datapath)
            except (BenchmarkError, LabError, OSError) as error:
                failures.append(error)

        killer = threading.Thread(target=crash)
        killer.start()
        try:
            self._cause_something()
        finally:
            killer.join()
        self.events[-1]["proxy_killed_after_s"] = round(wait_s, 3)
        if failures:
            raise BenchmarkError(f"The proxy did not start again: {failures[0]}") from failures[0]
        self.killed += 1

    def _any_link(self) -> Link:
        return self.chance.choice(self.lab.links)

    def _move(self, flow: str, link: str) -> None:
        done = self.product.msocks("move", flow, "--to", link)
        # A session that ends meanwhile cannot move; whether one is lost is seen by its own client.
        self.events[-1]["answer"] = done.stderr.strip()

    def _move_one(self) -> None:
        live = [flow for flow in self._flows if flow["state"] == "live"]
        if live:
            flow = self.chance.choice(live)
            self._move(flow["id"], "lte" if flow["link"] == "wifi" else "wifi")

    def _move_all(self) -> None:
        self._move("all", self._any_link().name)

    def _cut(self, mode: CutMode, least_s: float, most_s: float) -> None:
        link = self._any_link()
        link.cut(mode)
        time.sleep(self.chance.uniform(least_s, most_s))
        link.restore()

    def _no_link(self) -> None:
        links = self.chance.sample(self.lab.links, len(self.lab.links))
        for link in links:
            link.cut(self.chance.choice([CutMode.CARRIER, CutMode.SILENT]))
        for link in links:
            time.sleep(self.chance.uniform(0.2, 2.0))
            link.restore()


def run(
    seed: int, moves: int = MOVES, sessions: int = SESSIONS, crashes: int = 0, logs: Path | None = None
) -> dict[str, Any]:
    """One run in a lab of its own; its raw result. `logs` is a directory to keep. Raises BenchmarkError, LabError."""
    print(f"At least {moves} session-moves over {sessions} sessions, {crashes} crashes; seed {seed}", flush=True)
    datapath = "splice" if crashes else world.RELAY  # what the relay holds dies with it
    began = time.monotonic()
    with Lab(STANDARD_LAB, directory=logs) as lab:
        world.start_pattern_server(lab)
        product = world.start_product(lab, datapath)
        product.wait_links([link.name for link in lab.links])
        accepted = lab.server.accepted_connections()
        storm = Storm(lab, product, random.Random(seed), sessions, datapath, crashes)
        storm.play(moves)
        lost = [session for session in storm.ended if session.error]
        return {
            "seed": seed,
            "seconds": round(time.monotonic() - began, 1),
            "session_moves": storm.moves,
            "datapath": datapath,
            "crashes": storm.killed,
            "sessions": [session.as_json() for session in storm.ended],
            "sessions_lost": len(lost),
            "fewest_concurrent": min(event["concurrent"] for event in storm.events),
            "server_connections": lab.server.accepted_connections() - accepted,
            "causes": Counter(event["cause"] for event in storm.events),
            "events": storm.events,
        }


def failures(result: dict[str, Any], moves: int) -> list[str]:
    """What a result lacks; nothing where every byte was right and no session was lost."""
    sessions = len(result["sessions"])
    checks = {
        f"{result['sessions_lost']} of {sessions} sessions were lost": result["sessions_lost"] == 0,
        f"only {result['session_moves']} session-moves": result["session_moves"] >= moves,
        f"at times only {result['fewest_concurrent']} sessions": result["fewest_concurrent"] >= FEWEST_SESSIONS,
        f"the server accepted {result['server_connections']} connections for {sessions} sessions": (
            result["server_connections"] == sessions
        ),
    }
    return [problem for problem, holds in checks.items() if not holds]


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="moves", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--moves", type=int, default=MOVES)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--crashes", type=int, default=0, help="of the proxy, which splices then")
    parser.add_argument("--logs", type=Path, help="new directory for what all programs log, to be kept")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    with measurement_lock():
        result = run(options.seed, options.moves, options.sessions, options.crashes, options.logs)
    problems = failures(result, options.moves)
    for problem in problems:
        print(problem)
    print(f"{result['session_moves']} session-moves, {len(result['sessions'])} sessions, {result['crashes']} crashes, "
          f"{result['seconds']} s")  # fmt: skip
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
