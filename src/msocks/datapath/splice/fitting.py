"""Whether two legs can be made one: asked of the first pair, and of each later mobile leg."""

from __future__ import annotations

from msocks.datapath.interface import Attachment
from msocks.datapath.splice.entries import Side
from msocks.datapath.splice.layout import SERVER, LegFlag, Session
from msocks.datapath.splice.options import reconcile
from msocks.datapath.splice.told_mtus import ToldMtus
from msocks.protocol.leg import DatapathReason
from msocks.session.resume import StreamState


def why_not(session: Session, mobile: Side, server: Side, *, resumable: bool, told: ToldMtus) -> DatapathReason | None:
    """Why the first leg and the server leg cannot be spliced; None where they can.

    Args:
        session: The entry, as far as the handshake with the server has filled it in.
        mobile: The first leg.
        server: The server leg.
        resumable: Whether the client is one of MSOCKS.
        told: What servers were told of narrow paths.
    """
    if mobile.is_local or server.is_local:
        return DatapathReason.LOCAL_SERVER
    if not session.legs[SERVER].flags & LegFlag.NOTED:
        return DatapathReason.NO_KERNEL_SUPPORT  # its packets pass no interface with our programs
    narrow = server.options.largest_segment < mobile.options.announced_segment
    believed = told.segment(server.key[:16], server.family) if narrow else None  # a system call
    return reconcile(mobile.options, server.options, tolerant=resumable, believed=believed)


def misfit(session: Session, mobile: Side) -> DatapathReason | None:
    """Why a later leg does not fit a session that is spliced: only what was agreed with the server counts."""
    needs_timestamps = session.legs[SERVER].flags & LegFlag.TIMESTAMPS
    if mobile.options.ecn or (needs_timestamps and not mobile.options.timestamps):
        return DatapathReason.UNEQUAL_OPTIONS
    return DatapathReason.LOCAL_SERVER if mobile.is_local else None


def check_place(leg: Attachment, state: StreamState) -> None:
    """Raise ValueError where a leg begins at a place in the streams that is gone, or has not come yet."""
    first, last = state.down_acknowledged, state.down_available
    if not first <= leg.down_from <= last:
        raise ValueError(f"the leg begins at downstream byte {leg.down_from}, outside {first} to {last}")
    if leg.up_from > state.up_taken and not leg.handover:
        raise ValueError(f"the leg begins at upstream byte {leg.up_from}, but only {state.up_taken} have arrived")
