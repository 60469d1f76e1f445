"""How long a session waits for the answer to one attempt."""

from __future__ import annotations

ATTEMPT_S = 3.0
"""The TCP handshake and one round trip of the request, on a path whose round-trip time is not known yet."""
ATTEMPT_MARGIN_S = 0.4
"""How much longer than four round trips an answer may take where it is known."""
TURN_S = 10.0
"""How long it waits for others to be answered before it asks. Where none of them is, another link is worth a try."""


def patience_s(rtt_s: float | None, failures: int, links: int) -> float:
    """In seconds, after so many failures in a row on as many links.

    A proxy that a thousand sessions ask at once answers the last of them late: who asks again as soon each time makes
    it later still, and no answer ever comes in time.
    """
    if rtt_s is None:
        return ATTEMPT_S
    rounds = failures // max(1, links)
    return min(ATTEMPT_S, (4 * rtt_s + ATTEMPT_MARGIN_S) * (1 << min(rounds, 10)))
