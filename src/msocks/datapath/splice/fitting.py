"""Whether a mobile leg can be spliced with the server leg of a session."""

from __future__ import annotations

from msocks.datapath.splice.entries import Side
from msocks.datapath.splice.layout import SERVER, LegFlag, Session
from msocks.datapath.splice.options import reconcile
from msocks.protocol.leg import DatapathReason


def misfit_of_first(
    session: Session, mobile: Side, server: Side, *, resumable: bool, believed: int | None
) -> DatapathReason | None:
    """Why the first leg and the server leg cannot be spliced; None where they can. `believed` as in `reconcile`."""
    if mobile.is_local or server.is_local:
        return DatapathReason.LOCAL_SERVER
    if not session.legs[SERVER].flags & LegFlag.NOTED:
        return DatapathReason.NO_KERNEL_SUPPORT  # its packets pass no interface with our programs
    return reconcile(mobile.options, server.options, tolerant=resumable, believed=believed)


def misfit_of_later(session: Session, mobile: Side) -> DatapathReason | None:
    """Why a later leg does not fit a session that is spliced: only what was agreed with the server counts."""
    needs_timestamps = session.legs[SERVER].flags & LegFlag.TIMESTAMPS
    if mobile.options.ecn or (needs_timestamps and not mobile.options.timestamps):
        return DatapathReason.UNEQUAL_OPTIONS
    return DatapathReason.LOCAL_SERVER if mobile.is_local else None
