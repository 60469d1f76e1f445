"""What the proxy's verdict on a leg means for the session at the mobile node."""

from __future__ import annotations

from msocks.errors import EndReason
from msocks.protocol.leg import LegStatus

REFUSALS = {LegStatus.CANNOT_SPLICE: "cannot_splice: something on it takes out TCP options that the server counts on"}
"""Verdicts on the link alone, in words for its user."""

ENDINGS: dict[LegStatus, EndReason] = {
    LegStatus.UNKNOWN_SESSION: EndReason.UNKNOWN,
    LegStatus.ENDED_RESET: EndReason.SERVER_RESET,
    LegStatus.ENDED_FIN: EndReason.CLOSED,
    LegStatus.ENDED_EXPIRED: EndReason.EXPIRED,
    LegStatus.ENDED_CLOSED: EndReason.CLIENT_CLOSED,
    LegStatus.ENDED_TIMED_OUT: EndReason.SERVER_TIMED_OUT,
    LegStatus.ENDED_BYTES_LOST: EndReason.BYTES_LOST,
    LegStatus.BAD_OFFSETS: EndReason.BYTES_LOST,
}
"""Verdicts that end the session, and why."""
