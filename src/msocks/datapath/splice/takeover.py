"""Takes one mobile leg over from the kernel, and at the first one the server leg as well.

The order leaves no gap. The entry and its flows are installed while the kernel's sockets still answer. Then the mobile
leg's socket writes the reply: the egress hook sees it leave, notes where the numbers of the leg stand, and from that
instant the leg is spliced. What the kernel had acknowledged until then lies in the socket, and is read from there. The
server, which the egress hook had told a window of zero, gets the mobile's; and the sockets vanish without a word.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from msocks.datapath.interface import Attachment
from msocks.datapath.splice.entries import Side, fill_mobile_leg, key_of
from msocks.datapath.splice.layout import NO_FIN, SERVER, Leg, LegFlag, LegState, Session
from msocks.datapath.splice.raw_output import RawOutput
from msocks.datapath.splice.rebuild import vanish
from msocks.datapath.splice.residual import Residual
from msocks.datapath.splice.segments import FIN, PSH
from msocks.datapath.splice.speech import largest_payload, say
from msocks.datapath.splice.tables import Tables
from msocks.transport.kernel import bytes_unread
from msocks.transport.reactor import Reactor

_NOT_YET_S = 0.001  # the kernel has not sent the reply at once: its pacing, or a full queue
_NEVER_S = 5.0
_MOST_EARLY_BYTES = 1 << 20
_SAFE_SEGMENT = 1220  # fits every IPv6 path (RFC 8200 section 5)


class Takeover:
    """One mobile leg from its reply on, until all that this host owes on it is acknowledged.

    Attributes:
        number: Of the leg in the session's entry, 1 or 2.
        owed_until: Upstream bytes that this host has taken on itself.
    """

    __slots__ = (
        "_attachment",
        "_deadline",
        "_on_lost",
        "_on_spliced",
        "_output",
        "_owes_fin",
        "_reactor",
        "_residuals",
        "_resumable",
        "_server",
        "_session",
        "_side",
        "_tables",
        "number",
        "owed_until",
    )

    def __init__(
        self,
        reactor: Reactor,
        tables: Tables,
        output: RawOutput,
        session: Session,
        number: int,
        side: Side,
        *,
        resumable: bool,
    ) -> None:
        self.number = number
        self.owed_until = 0
        self._reactor = reactor
        self._tables = tables
        self._output = output
        self._session = session
        self._side = side
        self._resumable = resumable
        self._residuals: list[Residual] = []
        self._server: socket.socket | None = None
        self._attachment: Attachment | None = None

    @property
    def offered(self) -> int:
        """Bytes of the stream that the mobile takes."""
        reply = self._attachment.reply if self._attachment is not None else b""
        return max(0, self._side.options.send_window - len(reply))

    def fill(self, attachment: Attachment) -> bytes:
        """Fill in the leg's entry; returns its key in the table of flows."""
        self._attachment = attachment
        entry = self._session.legs[self.number]
        fill_mobile_leg(entry, self._side, attachment)
        entry.state = LegState.HANDSHAKE
        down = self._session.down
        self._session.mobile_edge = attachment.down_from + self.offered
        self._owes_fin = down.fin != NO_FIN and down.acked > down.fin
        return key_of(entry)

    def begin(self, server: socket.socket | None, on_spliced: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Write the reply; the flows are installed.

        Args:
            server: The server leg's socket, at the first leg.
            on_spliced: Called when the sockets have vanished, perhaps within this call.
            on_lost: Called where the leg came to nothing, not within this call; `server` is as it was.
        """
        self._server = server
        self._on_spliced = on_spliced
        self._on_lost = on_lost
        self._deadline = time.monotonic() + _NEVER_S
        attachment = self._attachment
        assert attachment is not None
        try:
            attachment.sock.send(attachment.reply)
        except OSError:
            self._lose()
            return
        self._look()

    def begin_live(self, attachment: Attachment, *, window: int) -> None:
        """The leg carries already, and its numbers are known; its reply is crafted.

        Args:
            attachment: The leg.
            window: Bytes that the server may send behind what it knows to be acknowledged.
        """
        self._owes_fin = False
        early = attachment.early + _unread(attachment.sock)
        self._let_go(attachment.sock)
        self._pass_on_or_tell(early, attachment.up_from, window)
        self._watch_reply(attachment, b"", is_said=False)

    def cancel(self) -> None:
        """Nobody waits for anything on this leg any more."""
        for residual in self._residuals:
            residual.cancel()
        self._residuals = []
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            self._let_go(attachment.sock)

    def repeat(self) -> None:
        """The mobile has what came behind the reply, but not the reply."""
        for residual in tuple(self._residuals):
            residual.again()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Whether the reply has left."""
        attachment = self._attachment
        if attachment is None:
            return
        if self._session.legs[self.number].state == LegState.LIVE:
            self._attachment = None
            self._finish(attachment)
        elif time.monotonic() > self._deadline:
            self._lose()
        else:
            self._reactor.loop.call_later(_NOT_YET_S, self._look)

    def _lose(self) -> None:
        attachment, self._attachment = self._attachment, None
        assert attachment is not None
        self._let_go(attachment.sock)
        self._reactor.call_soon(self._on_lost)

    def _let_go(self, sock: socket.socket) -> None:
        self._reactor.forget(sock.fileno())
        vanish(sock)

    def _finish(self, attachment: Attachment) -> None:
        early = attachment.early + _unread(attachment.sock)
        self._let_go(attachment.sock)
        banner = b""
        server, self._server = self._server, None
        if server is not None:
            banner = _unread(server)
            self._let_go(server)
        # The first word to the server says what the mobile's window is.
        offered = max(0, self._side.options.send_window - len(attachment.reply))
        self._pass_on_or_tell(early, attachment.up_from, offered)
        self._watch_reply(attachment, banner)
        self._on_spliced()

    def _pass_on_or_tell(self, early: bytes, offset: int, window: int) -> None:
        if early:
            self._pass_on(early, offset, window)
        else:
            self._output.send(say(self._session, SERVER, self._session.up.acked, window=window))

    def _watch_reply(self, attachment: Attachment, banner: bytes, *, is_said: bool = True) -> None:
        """The reply was said; say it again until the mobile has acknowledged it, and what belongs to it.

        `banner` are bytes of the server's that this host's kernel has acknowledged.
        """
        session, number = self._session, self.number
        entry = session.legs[number]
        first = attachment.down_from
        said = attachment.reply + banner
        flags = PSH
        if banner:
            end = first + len(banner)
            session.down.sent = max(session.down.sent, end)
            session.legs[SERVER].arrived = max(session.legs[SERVER].arrived, end)
            entry.begins_out = end
        if self._owes_fin:
            # An earlier leg has acknowledged the server's FIN, so the server says it no more: this leg needs its own.
            entry.begins_out = session.down.fin + 1
            flags |= FIN
        offset = first - len(attachment.reply)

        def again() -> None:
            self._output.send(say(session, number, offset, said, flags))

        if banner or flags & FIN or not is_said:
            again()
        self._owe(again, lambda: bool(entry.flags & LegFlag.REPLY_ACKED), entry)

    def _pass_on(self, early: bytes, offset: int, offered: int) -> None:
        """Bytes that came behind the request.

        Those of a leg that was capped are the mobile's still: the server gets a copy. Others this host's kernel has
        acknowledged; they are sent again until the server has them.
        """
        session = self._session
        server, mobile = session.legs[SERVER], session.legs[self.number]
        size = largest_payload(server, _SAFE_SEGMENT)
        end = offset + len(early)
        session.up.sent = max(session.up.sent, end)
        mobile.arrived = max(mobile.arrived, end)

        def pass_on() -> None:
            limit = min(end, session.up.edge)
            begin = max(offset, session.up.acked)
            while begin < limit:
                piece = early[begin - offset : min(limit, begin + size) - offset]
                self._output.send(say(session, SERVER, begin, piece, PSH, window=offered))
                begin += len(piece)

        pass_on()
        if not (self._resumable and mobile.generation > 1):
            self.owed_until = end
            self._owe(pass_on, lambda: bool(session.up.acked >= end), server)

    def _owe(self, say_again: Callable[[], None], is_acknowledged: Callable[[], bool], leg: Leg) -> None:
        def over(_acknowledged: bool) -> None:
            # A mobile that does not answer is found by those who watch over its links.
            self._residuals.remove(residual)

        timeout_s = 3 * leg.round_trip_ms / 1000
        residual = Residual(self._reactor.loop, say_again, is_acknowledged, over, timeout_s=timeout_s)
        self._residuals.append(residual)


def _unread(sock: socket.socket) -> bytes:
    """What the kernel has acknowledged and nobody has read."""
    pieces = []
    try:
        left = min(bytes_unread(sock), _MOST_EARLY_BYTES)
        while left > 0:
            piece = sock.recv(left)
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
    except OSError:
        pass
    return b"".join(pieces)
