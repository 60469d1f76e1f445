"""The lab of `make bench-agent`: servers, a spliced proxy, an agent and its stand-in, all running side by side.

What is not used is idle and costs nothing, so the ways through it take turns within seconds of each other.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, world
from benchmarks.agent_ways import start_stand_in
from benchmarks.compiled import program
from benchmarks.splice_contenders import ONE_PROCESSOR
from benchmarks.world import Product
from msocks_lab import Lab, LabConfig, LabProcess, LinkConfig

LINK = "fat"
LAB = LabConfig([LinkConfig(LINK, fat=True)])
ECHO_PORT = 9001
_QUEUE = ("burst", "256kb", "latency", "10ms")


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the mobile's link is in each direction, in Mbit/s of Ethernet frames (10^6 bit/s), None for no limit."""

    name: str
    title: str
    mbit: int | None


GIGABIT = Speed("gigabit", "1 Gbit/s", 1000)
UNLIMITED = Speed("unlimited", "unlimited", None)
SPEEDS = (GIGABIT, UNLIMITED)


@dataclass(frozen=True, slots=True)
class Field:
    """Everything that runs."""

    lab: Lab
    product: Product
    stand_in: LabProcess

    @property
    def programs(self) -> dict[str, LabProcess]:
        """What stands between client and server, by its part."""
        return {"agent": self.product.agent, "proxy": self.product.proxy, "stand-in": self.stand_in}

    def used(self) -> dict[str, tuple[float, float]]:
        """Processor seconds of these so far, in user space and in the kernel."""
        return {
            name: machine.user_and_system_seconds(machine.tree([process.pid]))
            for name, process in self.programs.items()
        }

    @contextlib.contextmanager
    def on_one_processor(self) -> Iterator[None]:
        """Keep all programs on the first processor meanwhile, as `splice_contenders.ONE_PROCESSOR` does a new one."""
        threads = [
            int(entry.name)
            for pid in machine.tree(process.pid for process in self.programs.values())
            for entry in Path(f"/proc/{pid}/task").iterdir()
        ]
        before = {thread: os.sched_getaffinity(thread) for thread in threads}
        try:
            for thread in threads:
                os.sched_setaffinity(thread, {0})
            yield
        finally:
            for thread, processors in before.items():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, processors)


@contextlib.contextmanager
def running(speed: Speed) -> Iterator[Field]:
    """A lab of which the link has this speed. Raises BenchmarkError, LabError."""
    with Lab(LAB) as lab:
        world.start_pattern_server(lab)
        lab.server.popen([*ONE_PROCESSOR, program("sessions"), "serve", str(ECHO_PORT)], stdout=subprocess.DEVNULL)
        lab.server.wait_listening(ECHO_PORT)
        product = world.start_product(lab, "splice", proxy_options=["--open"])
        field = Field(lab, product, start_stand_in(lab))
        product.wait_links([LINK])
        if speed.mbit is not None:
            limit(lab, speed.mbit)
        yield field
        # Killed with the lab, they would leave their control groups behind.
        world.wait_for(lambda: not _keepers(product), "the keepers of `msocks run` to end")


def _keepers(product: Product) -> list[int]:
    """What is there of `msocks run`: programs that it runs or has yet to become, and the keepers beside them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"run" in words and str(product.control).encode() in words:
                found.append(int(process.name))
    return found


def limit(lab: Lab, mbit: int) -> None:
    """Let the link carry so much in each direction, with 10 ms of data waiting at most (tc-tbf(8)).

    The lab's own emulator does not reach such rates. Raises ProcessFailed.
    """
    for host, interface in ((lab.mobile, LINK), (lab.host(f"radio-{LINK}"), "mobile")):
        rate = ("root", "tbf", "rate", f"{mbit}mbit", *_QUEUE)
        host.run(["tc", "qdisc", "replace", "dev", interface, *rate])
