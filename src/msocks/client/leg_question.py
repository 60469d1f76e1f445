"""What a leg asks the proxy for: the request that a session's present state calls for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msocks.protocol.leg import Connect, LegRequest, Reconnect

if TYPE_CHECKING:
    from msocks.client.connection import Connection
    from msocks.client.leg_attempt import LegAttempt
    from msocks.client.network import Authority
    from msocks.session.mobile_effects import Attempt


def leg_request(
    connection: Connection, authority: Authority, attempt: LegAttempt, effect: Attempt, begins_at: int
) -> LegRequest:
    """The request of `attempt`, whose upstream bytes begin with that of offset `begins_at`."""
    number, expires_ms = authority.next_leg_number(), authority.expiry_ms()
    if not effect.reconnect:
        return Connect(
            association=authority.id,
            leg_number=number,
            expires_ms=expires_ms,
            session=connection.session,
            generation=attempt.generation,
            destination=connection.destination,
            middlebox=attempt.split,
        )
    stream = connection.stream
    return Reconnect(
        association=authority.id,
        leg_number=number,
        expires_ms=expires_ms,
        session=connection.session,
        generation=attempt.generation,
        received=stream.received(),
        upstream_from=begins_at,
        down_fin_at=stream.position if stream.at_eof else None,
        up_fin_at=stream.written if stream.finishing else None,
        handover_from=effect.handover_from if attempt.handover else 0,
        first_flight=attempt.first_flight,
        middlebox=attempt.split,
    )
