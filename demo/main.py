"""`make demo`: a download by curl and an ssh session move between networks, again and again; nothing is lost.

Exit status 0 only if every move happened, both programs ended well, the file's digest is right, the server saw one
connection from each, and the datapath that was asked for carried both.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from demo.watchers import TYPING_PERIOD_S, Download, Typing
from demo.world import WEB_PORT, World, build
from msocks_lab import CutMode, LinkCounters
from msocks_lab.measurement import measurement_lock

FILE_BYTES = 320_000_000
LAST_BYTES = 10_000_000
SETTLE_S = 3.0  # between moves, so that each one's stall is its own
PATIENCE_S = 20.0


@dataclass
class Row:
    """One move, for the table."""

    what: str
    programs: tuple[str, ...]
    to: str
    stall_ms: dict[str, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Carrier:
    """What has carried a program's session at the proxy, by the agent's flow table."""

    program: str
    datapath: str
    reason: str  # why it was not the splice

    def __str__(self) -> str:
        reason = "" if self.reason == "unspecified" else f" ({self.reason})"
        return f"{self.program}: {self.datapath}{reason}"


class Show:
    """Carries the script out, and watches."""

    def __init__(self, world: World, download: Download, typing: Typing) -> None:
        self.world = world
        self.download = download
        self.typing = typing
        self.rows: list[Row] = []
        self.carriers: set[Carrier] = set()
        self._flows = {"curl": "", "ssh": ""}
        self._printed = 0.0
        self._last = (time.monotonic(), 0)

    def find_flows(self) -> None:
        """Learn which flow is whose, by its destination port."""
        for flow in self.world.flows():
            self._flows[_program(flow)] = flow["id"]

    def note_carriers(self) -> None:
        """Learn what carries the sessions now: that may change with a move."""
        for flow in self.world.flows():
            if flow["datapath"] != "none":  # no leg yet
                self.carriers.add(Carrier(_program(flow), flow["datapath"], flow["datapath_reason"]))

    def requested(self, programs: tuple[str, ...], to: str) -> None:
        """`msocks move`, for one program's flow or for all."""

        def move() -> None:
            flow = "all" if len(programs) > 1 else self._flows[programs[0]]
            done = self.world.msocks("move", flow, "--to", to)
            if done.returncode:
                raise RuntimeError(done.stderr.strip())

        self.step("msocks move", programs, to, move)

    def step(self, what: str, programs: tuple[str, ...], to: str, act: Callable[[], object]) -> None:
        """Do something to the network (or ask for a move); wait until the programs run over `to`; note the stalls."""
        row = Row(what, programs, to)
        self.rows.append(row)
        began = time.monotonic()
        print(f"  {len(self.rows)}. {what}: {' and '.join(programs)} to {to}", flush=True)
        try:
            act()
            self._wait_for(programs, to)
        except (RuntimeError, TimeoutError) as error:
            row.problem = str(error)
        self.note_carriers()
        self.watch(SETTLE_S)
        meters = {"curl": self.download.meter, "ssh": self.typing.meter}
        for program in programs:
            row.stall_ms[program] = meters[program].longest_gap(since=began).seconds * 1000
        if not row.problem:
            row.problem = self._check_counters(programs, to)
        if row.problem:
            print(f"     {row.problem}", flush=True)

    def watch(self, seconds: float) -> None:
        """Let time pass, with a line of progress twice a second."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and not self.download.done:
            if now - self._printed >= 0.5:
                self._print_progress(now)
            time.sleep(0.02)

    def _wait_for(self, programs: tuple[str, ...], to: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            flows = {flow["id"]: flow for flow in self.world.flows()}
            wanted = [flows.get(self._flows[program], {}) for program in programs]
            if all(flow.get("link") == to and flow.get("state") == "live" for flow in wanted):
                return
            self.watch(0.05)
        raise TimeoutError(f"not on {to} within {PATIENCE_S:.0f} s")

    def _check_counters(self, programs: tuple[str, ...], to: str) -> str:
        """The lab's interface counters say which link the download's bytes and its ACKs cross, now."""
        if "curl" not in programs or self.download.done:
            return ""
        links = {link.name: link for link in self.world.lab.links}
        earlier = links[to].counters()
        self.watch(0.3)  # the link before delivers what was on its way there
        before = {name: link.counters() for name, link in links.items()}
        arrived = self.download.meter.total
        self.watch(1.0)
        moved = {name: links[name].counters().since(before[name]) for name in links}
        arrived = self.download.meter.total - arrived
        # Of what arrives, a part came before, and waited for a segment that had been lost.
        came = links[to].counters().since(earlier).bytes_down
        if came < arrived:
            return f"{arrived} bytes arrived, but only {came} came over {to}"
        strays = [name for name, crossed in moved.items() if name != to and _busy(crossed)]
        return f"bytes still cross {', '.join(strays)}" if strays else ""

    def _print_progress(self, now: float) -> None:
        then, total_then = self._last
        total = self.download.meter.total
        rate = (total - total_then) * 8 / (now - then) / 1e6
        self._last = (now, total)
        self._printed = now
        flows = {flow["id"]: flow for flow in self.world.flows()}
        curl, ssh = (flows.get(self._flows[program], {}) for program in ("curl", "ssh"))
        where = "   ".join(
            f"{name} on {flow.get('link') or '-':4} ({flow.get('state', '?')}, {flow.get('moves', 0)} moves)"
            for name, flow in (("curl", curl), ("ssh", ssh))
        )
        print(f"     {total / 1e6:6.1f} MB  {rate:5.1f} Mbit/s   {where}", flush=True)


def _program(flow: dict[str, Any]) -> str:
    return "curl" if str(flow["destination"]).endswith(f":{WEB_PORT}") else "ssh"


def _busy(crossed: LinkCounters) -> bool:
    """More than what an ssh session and probes need in a second."""
    return crossed.bytes_down > 60_000


def play(show: Show) -> None:
    """The script: every cause at least once, both programs at least six times."""
    wifi, lte = show.world.lab.link("wifi"), show.world.lab.link("lte")
    both = ("curl", "ssh")
    show.watch(2.0)
    show.find_flows()
    show.requested(("curl",), "lte")
    show.requested(("ssh",), "lte")
    show.requested(both, "wifi")
    show.step("wifi goes down", both, "lte", lambda: wifi.cut(CutMode.CARRIER))
    show.step("wifi is back", both, "wifi", wifi.restore)
    show.step("wifi goes silent", both, "lte", lambda: wifi.cut(CutMode.SILENT))
    show.step("wifi is back", both, "wifi", wifi.restore)

    def no_link(seconds: float) -> Callable[[], None]:
        def cut_both() -> None:
            wifi.cut(CutMode.CARRIER)
            lte.cut(CutMode.CARRIER)
            show.watch(seconds)
            lte.restore()

        return cut_both

    def kill_the_proxy() -> None:
        show.world.kill_proxy()
        show.watch(2.0)
        show.world.start_proxy()

    show.step("no link for 3 s", both, "lte", no_link(3))
    show.step("no link for 10 s", both, "lte", no_link(10))
    if {carrier.datapath for carrier in show.carriers} == {"splice"}:  # what is relayed ends with its proxy
        show.step("kill -9 of proxy", both, "lte", kill_the_proxy)
    show.step("wifi is back", both, "wifi", wifi.restore)


def main() -> int:
    """Build, play, judge, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--datapath", default="auto", choices=["auto", "splice", "relay"], help="of the proxy")
    options = parser.parse_args()
    started = time.monotonic()
    print("Two networks: wifi (50 Mbit/s, 5 ms, IPv4 only, behind a NAT) and lte (20 Mbit/s, 50 ms, IPv6 only).")
    print(f"curl downloads {FILE_BYTES // 1_000_000} MB from nginx; an ssh session echoes what is typed every 200 ms.")
    with measurement_lock(), build(FILE_BYTES, options.datapath) as world:
        download, typing = Download(world.curl()), Typing(world.ssh())
        show = Show(world, download, typing)
        play(show)
        after_last = download.meter.total
        print("  The rest of the download, without a move.", flush=True)
        deadline = time.monotonic() + 90
        while not download.done and time.monotonic() < deadline:
            show.watch(0.5)
        show.note_carriers()
        carriers = sorted(show.carriers)
        carried = {carrier.datapath for carrier in carriers}
        checks = {
            "every move came about": not any(row.problem for row in show.rows),
            "curl ended with status 0": download.done and download.process.wait(5) == 0,
            "SHA-256 of the download equals the file's": download.digest == world.digest,
            f"at least {LAST_BYTES // 1_000_000} MB after the last move": download.meter.total - after_last
            >= LAST_BYTES,
            "ssh never broke, every line came back in order": typing.finish(),
            "the server saw one connection from curl, one from ssh": world.lab.server.accepted_connections() == 2,
            "nginx served one request, no range": _one_request(world),
            "what carried both is the datapath that was asked for": len(carriers) >= 2
            and (options.datapath == "auto" or carried == {options.datapath}),
        }
    _print_table(show.rows, carriers)
    for text, holds in checks.items():
        print(f"  {'yes' if holds else 'NO ':3}  {text}")
    print(f"  {time.monotonic() - started:.0f} s in all.")
    return 0 if all(checks.values()) else 1


def _one_request(world: World) -> bool:
    lines = (world.directory / "nginx-access.log").read_text().splitlines()
    return lines == [f"GET /file range=- status=200 bytes={FILE_BYTES}"]


def _print_table(rows: list[Row], carriers: list[Carrier]) -> None:
    head = f"{'':3} {'cause':18} {'to':5} {'curl stalled':>13} {'ssh stalled':>13}"
    print(f"\n  {head}   (datapath of {', '.join(map(str, carriers))})")
    for number, row in enumerate(rows, 1):
        cells = [f"{row.stall_ms[name]:10.0f} ms" if name in row.stall_ms else " " * 13 for name in ("curl", "ssh")]
        print(f"  {number:2}. {row.what:18} {row.to:5} {cells[0]} {cells[1]}   {row.problem}")
    period = TYPING_PERIOD_S * 1000
    print(
        f"  A stall is the longest gap between arriving bytes; ssh's includes the {period:.0f} ms between two lines.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
