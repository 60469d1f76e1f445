"""The upstream bytes that a leg begins with before anybody has said what has arrived: a guess, and what mends it.

The ACKs that were under way when a leg was lost would have told. Without them the server may have anything between
what was acknowledged and all that was sent. To ask costs a round trip, and so does a first flight of bytes that the
server has. So the first flight is taken from where the server probably is, and the proxy, which knows, decides where
the leg goes on: behind the flight where that was of use, else at what has arrived; then the flight was in vain, and
nothing else. Sans-IO.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FirstFlight:
    """Bytes `begins_at` to `end` of the upstream, sent behind a RECONNECT; the leg brings nothing more till its reply.

    Attributes:
        begins_at: Offset of the first one, perhaps beyond what has arrived.
        length: How many; more than 0.
    """

    begins_at: int
    length: int

    @property
    def end(self) -> int:
        """Offset behind the last one."""
        return self.begins_at + self.length

    def leg_begins_at(self, arrived: int) -> int:
        """From which offset on the leg's bytes count, when the server has so much.

        Where the flight begins, if it joins what has arrived. If not, its bytes take the place of as many that have
        arrived, so that the leg goes on at `arrived`: negative where there are not as many.
        """
        if self.begins_at <= arrived <= self.end:
            return self.begins_at
        return arrived - self.length


def guess(acknowledged: int, sent: int, bytes_per_second: float, unheard_s: float, length: int) -> FirstFlight | None:
    """The flight to begin with, or None where there is nothing to be guessed: begin with what is not acknowledged.

    Args:
        acknowledged: Upstream bytes of which ACKs have come.
        sent: Upstream bytes that may have arrived.
        bytes_per_second: As fast as they arrived last.
        unheard_s: What arrived in so many seconds was acknowledged in vain.
        length: Of the flight.
    """
    if length <= 0 or acknowledged < length or sent - acknowledged <= length:
        return None
    begins_at = acknowledged + int(bytes_per_second * unheard_s)
    return FirstFlight(min(begins_at, sent - length), length)
