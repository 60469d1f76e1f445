"""A leg whose request is being considered, and what it can be told: an MSOCKS leg, or a plain SOCKS5 connection."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, Protocol

from msocks.datapath.interface import Attachment
from msocks.errors import EndReason
from msocks.protocol.leg import DatapathKind, DatapathReason, LegReply, LegStatus
from msocks.proxy.associations import Association
from msocks.session.record import SessionRecord, Tombstone
from msocks.session.resume import StreamState
from msocks.values.endpoint import Endpoint


@dataclass(slots=True)
class Grant:
    """What a leg is told that carries the session from now on.

    Attributes:
        generation: Of the leg.
        kind: What carries it.
        reason: Why that is not the splice.
        state: Where its streams are.
        bound: The proxy's address toward the server.
        down_from: D.
        up_from: A.
        handover: Whether the leg before delivers what was sent on it, and this one begins behind that.
    """

    generation: int
    kind: DatapathKind
    reason: DatapathReason
    state: StreamState
    bound: Endpoint
    down_from: int
    up_from: int
    handover: bool

    def attachment(self, sock: socket.socket, reply: bytes, early: bytes, *, split: bool = False) -> Attachment:
        """The leg as the conduit gets it."""
        return Attachment(
            sock=sock,
            generation=self.generation,
            reply=reply,
            down_from=self.down_from,
            up_from=self.up_from,
            early=early,
            handover=self.handover,
            split=split,
        )

    def reply(self) -> LegReply:
        """The same for an MSOCKS leg."""
        return LegReply(
            status=LegStatus.OK,
            generation=self.generation,
            down_from=self.down_from,
            up_acked=self.state.up_taken,
            down_fin_at=self.state.down_fin,
            up_fin_at=self.state.up_fin,
            bound=self.bound,
            datapath=self.kind,
            datapath_reason=self.reason,
        )


class WaitingLeg(Protocol):
    """See the module."""

    @property
    def generation(self) -> int:
        """The generation that it asks for; 1 for a plain client."""

    @property
    def leg_number(self) -> int:
        """Unique in its association."""

    @property
    def association(self) -> Association | None:
        """Whose keys it was authenticated with; None for a plain client."""

    @property
    def sockaddr(self) -> tuple[Any, ...]:
        """Where it comes from, as `socket` gives it."""

    @property
    def sock(self) -> socket.socket:
        """The connection; closed where it is `gone`."""

    @property
    def split(self) -> bool:
        """Whether a middlebox ACKs on it in the client's place."""

    @property
    def gone(self) -> bool:
        """Whether the connection was lost meanwhile."""

    def grant(self, grant: Grant) -> Attachment:
        """Give the connection away, with the reply that the conduit is to write."""

    def discard(self) -> None:
        """Close the connection that was granted, with RST: the conduit did not take it."""

    def answer(self, reply: LegReply) -> None:
        """Say `reply` and close."""


_VERDICTS = {
    EndReason.SERVER_RESET: LegStatus.ENDED_RESET,
    EndReason.CLOSED: LegStatus.ENDED_FIN,
    EndReason.EXPIRED: LegStatus.ENDED_EXPIRED,
    EndReason.REFUSED: LegStatus.REFUSED,
    EndReason.BYTES_LOST: LegStatus.ENDED_BYTES_LOST,
    EndReason.SERVER_TIMED_OUT: LegStatus.ENDED_TIMED_OUT,
}


def verdict(record: SessionRecord | Tombstone) -> LegReply:
    """What a leg is told that asks for an ended session.

    Where it ended in good order, the length of the downstream tells the client, whose last leg may have been reset
    behind the FIN, that what it has is all.
    """
    status = _VERDICTS.get(record.end or EndReason.UNSPECIFIED, LegStatus.ENDED_CLOSED)
    code = record.reply_code if status is LegStatus.REFUSED else 0
    fin = record.down_fin if status is LegStatus.ENDED_FIN else None
    return LegReply(status=status, socks_reply=code, generation=record.generation, down_fin_at=fin)
