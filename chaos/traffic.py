"""The sessions of a run, and the judgement of each: by the lab's programs at both ends, never by the product."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.world import AGENT_PORT, PATTERN_PORT

from chaos.plan import Kind, Transfer, transfers
from msocks_lab import Lab, LabProcess
from msocks_lab.process import python_argv

_SILENCE_S = 120.0  # without any progress: then a client gives up
_RESET = "ConnectionResetError"
_RESET_AT_SERVER = ("[Errno 104]", "[Errno 32]")  # ECONNRESET; EPIPE where another thread has heard of it first
_ECHO_BYTES = 64
_OVER = {"TIME_WAIT", "LISTEN", "CLOSE"}
_HALF_CLOSE = {Kind.CLIENT_ENDS_FIRST: "client", Kind.SERVER_ENDS_FIRST: "server"}


@dataclass(slots=True)
class Session:
    """One session; when it has ended, `problem` is empty where everything was as it had to be."""

    name: str
    transfer: Transfer
    client: LabProcess
    began: float
    seconds: float = 0.0
    bytes: int = 0
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """What the raw result keeps."""
        return {
            "name": self.name,
            "kind": self.transfer.kind,
            "seconds": round(self.seconds, 1),
            "bytes": self.bytes,
            "problem": self.problem,
        }


class Traffic:
    """So many places with one session each; where one ends, the next begins, until `finish`."""

    def __init__(self, lab: Lab, seed: int, places: int) -> None:
        self._lab = lab
        self._plans: list[Iterator[Transfer]] = [transfers(seed, place) for place in range(places)]
        self._counts = [0] * places
        self._running: dict[int, Session] = {}
        self.ended: list[Session] = []

    def tend(self, *, start: bool = True) -> None:
        """Judge the sessions that have ended, and start as many."""
        for place, session in tuple(self._running.items()):
            if session.client.poll() is not None:
                del self._running[place]
                self._judge(session)
        for place in range(len(self._plans)):
            if start and place not in self._running:
                self._start(place)

    def finish(self, timeout_s: float) -> None:
        """Let all end. What has not by then is a loss."""
        deadline = time.monotonic() + timeout_s
        while self._running and time.monotonic() < deadline:
            self.tend(start=False)
            time.sleep(0.1)
        for session in self._running.values():
            session.client.kill()
            session.client.wait()
            self._close(session, f"it hung: no end within {timeout_s:.0f} s after the last disturbance")
        self._running.clear()
        for session in self.ended:
            if not session.problem and not session.transfer.abort_after:
                self._said_by_server(session, max(deadline, time.monotonic() + 1.0))

    def _start(self, place: int) -> None:
        transfer = next(self._plans[place])
        self._counts[place] += 1
        name = f"{place}-{self._counts[place]}"
        argv = python_argv("msocks_lab.pattern_client", "--socks", f"127.0.0.1:{AGENT_PORT}", "--id", name)
        argv += ["--seed", str(transfer.seed), "--timeout", str(_SILENCE_S), *_options(transfer)]
        address = self._lab.server.ipv6 if transfer.seed % 2 else self._lab.server.ipv4
        client = self._lab.mobile.popen([*argv, address, str(PATTERN_PORT)], stdout=subprocess.PIPE)
        self._running[place] = Session(name, transfer, client, time.monotonic())

    def _judge(self, session: Session) -> None:
        out, _ = session.client.communicate()
        lines = out.splitlines()
        result: dict[str, Any] = (
            json.loads(lines[-1]) if lines else {"error": f"no result: {session.client.tail().strip()}"}
        )
        session.bytes = int(result.get("received", 0)) + int(result.get("upload", {}).get("bytes", 0))
        self._close(session, self._problem(session, result))

    def _problem(self, session: Session, result: dict[str, Any]) -> str:
        transfer, error = session.transfer, str(result["error"])
        if transfer.abort_after:
            if not error.startswith(_RESET):
                return f"the server reset it, and the client saw {error or 'an end without error'}"
            if result["received"] > transfer.abort_after:
                return f"{result['received']} bytes came, and the server had reset it after {transfer.abort_after}"
            return ""
        return error

    def _said_by_server(self, session: Session, deadline: float) -> None:
        """The server's own record of it. What the client has written may still be under way when that has ended."""
        path = self._lab.directory / f"{session.name}.json"
        while not path.exists():
            if time.monotonic() > deadline:
                self._lost(session, "the client was content, but the server has not seen its end")
                return
            time.sleep(0.05)
        record, transfer = json.loads(path.read_text()), session.transfer
        sent = transfer.round_trips * _ECHO_BYTES or transfer.upload
        if transfer.reset_after:
            if not record["error"].startswith(_RESET_AT_SERVER):
                self._lost(session, f"the client reset it, and the server saw {record['error'] or 'an end in order'}")
        elif record["error"] or record["receipt"]["error"]:
            self._lost(session, f"the server: {record['error'] or record['receipt']['error']}")
        elif record["receipt"]["bytes"] != sent:
            self._lost(session, f"the server got {record['receipt']['bytes']} of {sent} bytes")

    def _close(self, session: Session, problem: str) -> None:
        session.seconds = time.monotonic() - session.began
        self.ended.append(session)
        if problem:
            self._lost(session, problem)

    @staticmethod
    def _lost(session: Session, problem: str) -> None:
        session.problem = problem
        print(f"     LOST {session.name}, {session.transfer.kind}: {problem}", flush=True)


def _options(transfer: Transfer) -> list[str]:
    if transfer.round_trips:
        trips = ["--echo", str(transfer.round_trips), "--interval", str(transfer.interval)]
        return [*trips, "--size", str(_ECHO_BYTES)]
    options = ["--download", str(transfer.download), "--upload", str(transfer.upload), "--rate", str(transfer.rate)]
    if transfer.kind in _HALF_CLOSE:
        options += ["--half-close", _HALF_CLOSE[transfer.kind]]
    if transfer.abort_after:
        options += ["--abort-after", str(transfer.abort_after)]
    if transfer.reset_after:
        options += ["--reset-after", str(transfer.reset_after)]
    return options


def remains(lab: Lab, patience_s: float) -> list[str]:
    """Connections that the server still has `patience_s` after every session was over; each must have ended."""
    deadline = time.monotonic() + patience_s
    while True:
        found = [entry for entry in lab.server.tcp_sockets() if entry["state"] not in _OVER]
        if not found or time.monotonic() > deadline:
            return [f"{entry['state']} with {entry['remote_address']}:{entry['remote_port']}" for entry in found]
        time.sleep(0.2)
