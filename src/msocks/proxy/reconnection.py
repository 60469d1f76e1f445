"""Whether a leg may carry a session on: asked before the live leg is touched, and again once it stands still."""

from __future__ import annotations

import structlog

from msocks.datapath.interface import Carriage, Conduit, Successor
from msocks.protocol.leg import DatapathKind, LegCommand, LegReply, LegStatus
from msocks.protocol.leg_reply_codec import REPLY_BYTES
from msocks.protocol.leg_request_codec import REQUEST_BYTES
from msocks.proxy.waiting_leg import Grant, WaitingLeg, verdict
from msocks.session.record import SessionRecord, SessionState
from msocks.session.resume import ClientPosition, OffsetError, resume
from msocks.values.endpoint import Endpoint

_log = structlog.get_logger("msocks.proxy.session")


def consider(
    record: SessionRecord,
    conduit: Conduit,
    bound: Endpoint,
    leg: WaitingLeg,
    position: ClientPosition | None,
    handover_from: int,
) -> Grant | LegReply:
    """What a leg is told that claims to carry a session on; changes nothing.

    Args:
        record: The session's.
        conduit: The session's, which is not touched where the session has ended.
        bound: The proxy's address toward the server.
        leg: Has claimed its generation.
        position: From the request; None for a CONNECT whose reply was lost: everything from the beginning.
        handover_from: Generation of the live leg that is to hand over, 0 for a takeover.

    Returns:
        How it carries on, or why it does not.
    """
    refusal = _unwanted(record, leg)
    if refusal is not None:
        return refusal
    if handover_from and (record.state is not SessionState.LIVE or record.generation != handover_from):
        return LegReply(status=LegStatus.LEG_GONE, generation=record.generation)
    carriage = conduit.carriage_for(leg.sock, split=leg.split)
    if carriage.kind is DatapathKind.NONE:
        return _cannot_be_carried(record, carriage)
    if handover_from and not carriage.handover:
        return LegReply(status=LegStatus.LEG_GONE, generation=record.generation)
    state = conduit.state()
    if position is None:
        position = ClientPosition(received=0, sends_from=0, up_fin=state.up_fin, down_fin=None)
    try:
        begin = resume(position, state)
    except OffsetError as error:
        _log_refusal("offsets_refused", record, str(error))
        return LegReply(status=LegStatus.BAD_OFFSETS, generation=record.generation)
    return Grant(
        generation=leg.generation,
        kind=carriage.kind,
        reason=carriage.reason,
        state=state,
        bound=bound,
        down_from=begin.down_from,
        up_from=begin.up_from,
        handover=position.handover,
    )


def consider_first(record: SessionRecord, conduit: Conduit, bound: Endpoint, leg: WaitingLeg) -> Grant | LegReply:
    """The same of the leg that has waited for the server: both streams are at their beginning."""
    refusal = _unwanted(record, leg)
    if refusal is not None:
        return refusal
    carriage = conduit.carriage_for(leg.sock, split=leg.split)
    if carriage.kind is DatapathKind.NONE:
        return _cannot_be_carried(record, carriage)
    return Grant(leg.generation, carriage.kind, carriage.reason, conduit.state(), bound, 0, 0, False)


def _cannot_be_carried(record: SessionRecord, carriage: Carriage) -> LegReply:
    _log_refusal("leg_cannot_be_spliced", record, carriage.reason.name.lower())
    return LegReply(status=LegStatus.CANNOT_SPLICE, generation=record.generation)


def _unwanted(record: SessionRecord, leg: WaitingLeg) -> LegReply | None:
    """Why a leg is not looked at."""
    if record.state is SessionState.ENDED:
        return verdict(record)
    if not record.holds_claim(leg.generation):
        return stale(record)
    if leg.gone:
        return LegReply(status=LegStatus.BUSY, generation=record.generation)  # which nobody hears
    return None


def successor(leg: WaitingLeg, position: ClientPosition | None, handover_from: int) -> Successor | None:
    """What the datapath is told of a leg to which the live one is to hand over; None in a takeover."""
    if not handover_from or position is None or leg.gone:
        return None
    return Successor(leg.sock, position.sends_from, REQUEST_BYTES[LegCommand.RECONNECT], REPLY_BYTES)


def stale(record: SessionRecord) -> LegReply:
    """What a leg is told whose generation is not the highest."""
    return LegReply(status=LegStatus.STALE_GENERATION, generation=record.newest_claim)


def _log_refusal(event: str, record: SessionRecord, reason: str) -> None:
    _log.warning(event, user=record.user, session=record.session.short, reason=reason)
