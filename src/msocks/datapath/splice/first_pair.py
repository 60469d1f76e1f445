"""The server leg and the first mobile leg, until they are one: asked how they can be carried, and entered together.

Nearly all pairs are as Linux makes them, and one call finds that out and enters them (``bindings/openings.c``). All
others are looked at here.
"""

from __future__ import annotations

import contextlib
import socket

from msocks.datapath.interface import Attachment, Carriage
from msocks.datapath.splice import flows
from msocks.datapath.splice.entries import Side, fill_session
from msocks.datapath.splice.fitting import why_not
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.server_legs import Preparation
from msocks.datapath.splice.takeover import Takeover
from msocks.datapath.splice.unspliced import let_speak
from msocks.protocol.leg import DatapathKind, DatapathReason

SPLICED = Carriage(DatapathKind.SPLICE, DatapathReason.UNSPECIFIED, handover=False)


class FirstPair:
    """See the module.

    Attributes:
        server: The server leg's socket.
    """

    __slots__ = ("_host", "_is_entered", "_preparation", "_resumable", "_server_side", "_unprepared", "server")

    def __init__(
        self,
        host: SpliceHost,
        server: socket.socket,
        preparation: Preparation | None,
        *,
        resumable: bool,
        unprepared: DatapathReason,
    ) -> None:
        """Without a preparation it is relayed, since it is `unprepared`."""
        self.server = server
        self._host = host
        self._preparation = preparation
        self._resumable = resumable
        self._unprepared = unprepared
        self._server_side: Side | None = None
        self._is_entered = False  # by the one call

    def carriage_for(self, leg: socket.socket, *, split: bool = False) -> tuple[Carriage, Side | None]:
        """How the two can be carried, and what was found out about the mobile leg; both are entered for the splice.

        `split`: a middlebox ACKs on it in the mobile's place.
        """
        preparation, host = self._preparation, self._host
        if preparation is not None and not split:
            self._is_entered = host.tables.pair(
                preparation.slot, leg.fileno(), self.server.fileno(), resumable=self._resumable
            )
            if self._is_entered:
                return SPLICED, None
        try:
            side = Side.of(leg)
        except OSError:  # it is lost, and has no peer any more
            return SPLICED, None
        reason = DatapathReason.MIDDLEBOX if split else self._why_not(side)
        if reason is None:
            assert preparation is not None
            assert self._server_side is not None
            if flows.enter(host, preparation.slot, side, self._server_side):
                return SPLICED, side
            reason = DatapathReason.NO_ROOM
        return Carriage(DatapathKind.RELAY, reason, handover=False), side

    def _why_not(self, mobile: Side) -> DatapathReason | None:
        """Why they cannot be spliced."""
        if self._preparation is None:
            return self._unprepared
        try:
            server = self._server_side = Side.of(self.server, unread=False)
        except OSError:
            return DatapathReason.UNSPECIFIED  # it is lost: the relay finds out how
        told = self._host.tables.told_mtus
        return why_not(self._preparation.session, mobile, server, resumable=self._resumable, told=told)

    def take_over(self, takeover: Takeover, leg: Attachment, side: Side | None) -> bool:
        """Begin with the leg that was asked about, whose `side` was found; False where it was lost before that."""
        assert self._preparation is not None
        if self._is_entered:
            takeover.begin_entered(leg, self.server)
            return True
        if side is None:
            return False
        assert self._server_side is not None
        offered = takeover.fill(side, leg)
        fill_session(self._preparation.session, self._server_side, offered=offered, resumable=self._resumable)
        takeover.begin(self.server)
        return True

    def let_server_speak(self) -> socket.socket:
        """They are to be relayed: the server's kernel socket stays."""
        if self._preparation is not None:
            if self._server_side is None:
                with contextlib.suppress(OSError):  # it is lost: the relay finds out how
                    self._server_side = Side.of(self.server, unread=False)
            let_speak(self._host, self._preparation, self._server_side)
        return self.server
