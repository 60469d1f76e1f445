"""Sessions that have just ended in good order: their last ACK may have been lost with the link that it left on.

A server whose FIN nobody acknowledges says it again for minutes, toward a leg that is gone. Nothing else is lost, and
so this costs nothing until a link fails; then the proxy is told that those sessions are over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from msocks.values.ids import SessionId

KEPT_S = 60.0
"""TIME-WAIT of Linux: as long as that the kernel acknowledges the FIN again, while the link lives."""
MOST_KEPT = 1024


@dataclass(frozen=True, slots=True)
class EndedSession:
    """One of them.

    Attributes:
        session: Which.
        generation: Of its last leg.
        up_end: Where its upstream ends, as an offset.
    """

    session: SessionId
    generation: int
    up_end: int


class EndedSessions:
    """See the module. `clock` gives monotonic seconds; of so many the newest `MOST_KEPT` are kept."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, str, EndedSession]] = deque(maxlen=MOST_KEPT)

    def note(self, link: str, ended: EndedSession) -> None:
        """It had its last leg on `link`."""
        now = self._clock()
        while self._kept and self._kept[0][0] < now - KEPT_S:
            self._kept.popleft()
        self._kept.append((now, link, ended))

    def take(self, link: str) -> list[EndedSession]:
        """Those that ended on `link` a moment ago; each is returned once."""
        earliest = self._clock() - KEPT_S
        found = [ended for at, name, ended in self._kept if name == link and at >= earliest]
        if found:
            self._kept = deque((each for each in self._kept if each[1] != link), maxlen=MOST_KEPT)
        return found
