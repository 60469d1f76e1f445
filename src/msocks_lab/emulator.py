"""The process that is one link: it carries packets between two TUN devices as two `Pipe`s say.

Started by the lab's supervisor with three descriptors: the TUN devices toward the mobile and toward the core, and a
SOCK_SEQPACKET Unix socket for commands. A command is one JSON object, its answer another. The first command has all
three keys, later ones any of the last two:

    {"seed": text}                             what chance begins with
    {"shapes": {"up": {...}, "down": {...}}}   the properties of either direction, or of both
    {"cut": {"up": true, "down": false}}       throw packets away, or stop doing so
    {}                                         nothing but the answer

    {"at": seconds of CLOCK_MONOTONIC when it took effect, "counters": {"up": {...}, "down": {...}}}
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from dataclasses import asdict
from typing import Any

from msocks_lab.config import Shape
from msocks_lab.namespaces import exact_timers
from msocks_lab.shaping import Pipe

_BURST = 64  # packets read from one device before the other one, and deliveries, get their turn
_LARGEST_PACKET = 9216


class Emulator:
    """See the module. `run` never returns."""

    def __init__(self, mobile_side: int, core_side: int, control: socket.socket) -> None:
        self._mobile_side, self._core_side, self._control = mobile_side, core_side, control
        start: dict[str, Any] = json.loads(control.recv(65536))
        seed = start["seed"]
        self._pipes = {side: Pipe(Shape(**start["shapes"][side]), f"{seed}-{side}") for side in ("up", "down")}
        for side, cut in start["cut"].items():
            self._pipes[side].cut(cut)
        self._answer(time.monotonic())

    def _answer(self, at: float) -> None:
        counters = {side: asdict(pipe.counters) for side, pipe in self._pipes.items()}
        self._control.send(json.dumps({"at": at, "counters": counters}).encode())

    def _obey(self) -> None:
        message = self._control.recv(65536)
        if not message:
            sys.exit(0)
        command: dict[str, Any] = json.loads(message)
        now = time.monotonic()
        for side, shape in command.get("shapes", {}).items():
            self._pipes[side].reshape(Shape(**shape), now)
        for side, cut in command.get("cut", {}).items():
            self._pipes[side].cut(cut)
        self._answer(now)

    def run(self) -> None:
        """Carry packets for ever."""
        monotonic, read = time.monotonic, os.read
        up, down = self._pipes["up"], self._pipes["down"]
        control = self._control.fileno()
        routes = {self._mobile_side: up, self._core_side: down}
        exits = ((up, self._core_side), (down, self._mobile_side))
        waited_for = (self._mobile_side, self._core_side, control)
        while True:
            deadline = min(up.next_delivery, down.next_delivery)
            # select(2) takes microseconds where epoll(7) takes milliseconds.
            timeout = None if deadline == float("inf") else max(0.0, deadline - monotonic())
            readable = select.select(waited_for, (), (), timeout)[0]
            for fd in readable:
                if fd == control:
                    self._obey()
                    continue
                offer = routes[fd].offer
                with contextlib.suppress(BlockingIOError):
                    for _ in range(_BURST):
                        offer(read(fd, _LARGEST_PACKET), monotonic())
            now = monotonic()
            for pipe, fd in exits:
                while pipe.next_delivery <= now and (packet := pipe.take(now)) is not None:
                    # The device refuses while its interface is down: then the packet is lost, as on the air.
                    with contextlib.suppress(OSError):
                        os.write(fd, packet)


def main() -> None:
    """`python -m msocks_lab.emulator MOBILE_FD CORE_FD CONTROL_FD`."""
    mobile_side, core_side, control = (int(argument) for argument in sys.argv[1:])
    exact_timers()
    # Physics does not wait for the programs under test: it precedes them on a busy machine, where that is allowed.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    emulator = Emulator(mobile_side, core_side, socket.socket(fileno=control))
    gc.collect()
    gc.freeze()
    gc.disable()  # packets make no cycles, and a collection would be heard as jitter
    emulator.run()


if __name__ == "__main__":
    main()
