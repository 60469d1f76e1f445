"""What this host says on a spliced leg in the name of the other leg's end: crafted from the session's entry.

The kernel's sockets are gone, so sequence and ACK numbers, window and timestamps are those that the splice would write:
the other end's, seen from this leg.
"""

from __future__ import annotations

from msocks.datapath.splice.layout import SERVER, Leg, LegFlag, Session
from msocks.datapath.splice.segments import ACK, End, sack_blocks, segment, timestamps

_WORD = 0xFFFFFFFF
_WIDEST = 0xFFFF


def ends(leg: Leg) -> tuple[End, End]:
    """The leg's local and its remote end."""
    return (bytes(leg.local), _port(leg.local_port)), (bytes(leg.remote), _port(leg.remote_port))


def _port(network_order: int) -> int:
    return (network_order & 0xFF) << 8 | network_order >> 8


def say(
    session: Session,
    which: int,
    offset: int,
    payload: bytes = b"",
    flags: int = 0,
    *,
    window: int | None = None,
    sequence: int | None = None,
    acknowledged: int | None = None,
    sack: tuple[int, int] | None = None,
) -> bytes:
    """A segment for one leg.

    Args:
        session: The entry.
        which: The leg: 0 server, 1 or 2 mobile.
        offset: In the stream that leaves on it; of the payload's first byte.
        payload: Stream bytes, or a reply whose last byte lies before `offset` + its length.
        flags: ACK is set in any case.
        window: Bytes that the other end offers; what its last ACK offered where it is None.
        sequence: In place of the one that `offset` gives.
        acknowledged: End of what is acknowledged of the stream that arrives; all that may be where it is None.
        sack: First byte, and end, of what has come out of order in the stream that arrives (RFC 2018).

    Returns:
        The IP packet.
    """
    leg = session.legs[which]
    arriving = session.down if which == SERVER else session.up
    if acknowledged is None:
        known = arriving.acked if which == SERVER else min(arriving.acked, leg.arrived)
        acknowledged = max(known, leg.begins_in)
    room = max(0, arriving.edge - acknowledged) if window is None else window
    local, remote = ends(leg)
    blocks = [] if sack is None else [(leg.in_base + sack[0] & _WORD, leg.in_base + sack[1] & _WORD)]
    return segment(
        source=local,
        destination=remote,
        sequence=(leg.out_base + offset) & _WORD if sequence is None else sequence & _WORD,
        acknowledgment=(leg.in_base + acknowledged) & _WORD,
        flags=flags | ACK,
        window=min(_WIDEST, room >> leg.out_scale),
        options=(_clock(leg) if leg.flags & LegFlag.TIMESTAMPS else b"") + sack_blocks(blocks),
        payload=payload,
    )


def _clock(leg: Leg) -> bytes:
    """The newest TSval that has left, and the newest that came (RFC 7323 section 4).

    The clock is not moved on: a segment of the other end, which this one may overtake or be overtaken by, must not look
    older, or PAWS would drop it.
    """
    return timestamps(leg.ts_out, leg.ts_in)


def largest_payload(leg: Leg, mss: int) -> int:
    """Bytes of payload of one segment on the leg, whose peer takes segments of `mss`."""
    return max(1, mss - (12 if leg.flags & LegFlag.TIMESTAMPS else 0))
