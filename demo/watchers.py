"""What the two programs deliver, timed as it arrives: the demo's own clock and digest, not the product's word."""

from __future__ import annotations

import hashlib
import os
import threading
import time

from msocks_lab import LabProcess
from msocks_lab.arrival import ArrivalMeter

TYPING_PERIOD_S = 0.2


class Download:
    """Reads what curl writes, as it comes."""

    def __init__(self, process: LabProcess) -> None:
        self.process = process
        self.meter = ArrivalMeter()
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether curl has ended its output."""
        return not self._thread.is_alive()

    @property
    def digest(self) -> str:
        """SHA-256 of everything that came."""
        return self._digest.hexdigest()

    def _run(self) -> None:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while data := os.read(fd, 1 << 16):
            self.meter.add(len(data))
            self._digest.update(data)


class Typing:
    """Types a line into ssh every 200 ms, and reads what comes back."""

    def __init__(self, process: LabProcess) -> None:
        self.process = process
        self.meter = ArrivalMeter()
        self.typed = 0
        self.echoed = b""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._type, self._read)]
        for thread in self._threads:
            thread.start()

    def finish(self, timeout: float = 15) -> bool:
        """End the input; whether ssh then ended by itself, with status 0, and every line came back in order."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout)
        if any(thread.is_alive() for thread in self._threads):
            return False
        return self.process.wait(timeout) == 0 and self.echoed == b"".join(map(_line, range(self.typed)))

    def _type(self) -> None:
        assert self.process.stdin is not None
        start = time.monotonic()
        while not self._stop.wait(max(0.0, start + self.typed * TYPING_PERIOD_S - time.monotonic())):
            try:
                os.write(self.process.stdin.fileno(), _line(self.typed))
            except OSError:
                return
            self.typed += 1
        self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            self.meter.add(len(data))
            self.echoed += data


def _line(number: int) -> bytes:
    return b"line %d, typed by a person who does not notice\n" % number
