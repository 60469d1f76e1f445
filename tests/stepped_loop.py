"""An event loop whose time stands still until it is told otherwise: what is due when does not depend on the machine."""

from __future__ import annotations

import asyncio

_STEP_S = 0.001


class SteppedLoop(asyncio.SelectorEventLoop):
    """Timers are due by its own time, which begins at 0."""

    def __init__(self) -> None:
        self._steps = 0
        super().__init__()

    def time(self) -> float:
        """So many seconds have been passed."""
        return self._steps * _STEP_S

    def advance(self, seconds: float) -> None:
        """Let time pass, by milliseconds; all that falls due is called on its own."""
        for _ in range(round(seconds / _STEP_S)):
            self._steps += 1
            self.run_until_complete(asyncio.sleep(0))
