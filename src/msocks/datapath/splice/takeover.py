"""Takes one mobile leg over from the kernel, and at the first one the server leg as well.

The order leaves no gap. The entry and its flows are installed while the kernel's sockets still answer. Then the mobile
leg's socket writes the reply: the egress hook sees it leave, notes where the numbers of the leg stand, and from that
instant the leg is spliced. What the kernel had acknowledged until then lies in the socket, and is read from there. The
server, which the egress hook had told a window of zero, gets the mobile's; and the sockets vanish without a word.
"""

from __future__ import annotations

import ctypes
import socket
import time
from collections.abc import Callable

from msocks.datapath.interface import Attachment
from msocks.datapath.splice.entries import Side, fill_mobile_leg
from msocks.datapath.splice.host import SpliceHost
from msocks.datapath.splice.layout import NO_FIN, SERVER, Leg, LegFlag, LegState, Session, SessionFlag
from msocks.datapath.splice.libbpf import lib
from msocks.datapath.splice.rebuild import unheard, vanish
from msocks.datapath.splice.residual import Residual
from msocks.datapath.splice.segments import FIN, PSH
from msocks.datapath.splice.speech import largest_payload, say
from msocks.transport.kernel import bytes_unread

_NOT_YET_S = 0.001  # the kernel has not sent the reply at once: its pacing, or a full queue
_NEVER_S = 5.0
_MOST_COPIED_BYTES = 1 << 20
_STATE_AT = Leg.state.offset  # type: ignore[attr-defined]  # ctypes gives the class a descriptor
_SAFE_SEGMENT = 1220  # fits every IPv6 path (RFC 8200 section 5)


class Takeover:
    """One mobile leg from its reply on, until that is acknowledged.

    Attributes:
        number: Of the leg in the session's entry, 1 or 2.
    """

    __slots__ = (
        "_attachment",
        "_deadline",
        "_host",
        "_offered",
        "_on_early",
        "_on_lost",
        "_on_spliced",
        "_owes_fin",
        "_owes_window",
        "_residuals",
        "_resumable",
        "_server",
        "_session",
        "_unheard",
        "number",
    )

    def __init__(self, host: SpliceHost, session: Session, number: int, *, resumable: bool) -> None:
        self.number = number
        self._host = host
        self._session = session
        self._resumable = resumable
        self._unheard = False  # something that was said before the reply, by the mobile
        self._owes_window = False
        self._residuals: tuple[Residual, ...] = ()
        self._server: socket.socket | None = None
        self._attachment: Attachment | None = None

    def fill(self, side: Side, attachment: Attachment) -> int:
        """Fill in the leg's entry; returns how many bytes of the stream the mobile takes."""
        self._attachment = attachment
        session = self._session
        fill_mobile_leg(session.legs[self.number], side, attachment)
        self._unheard = bool(side.options.bytes_unheard)
        offered = self._offered = max(0, side.options.send_window - len(attachment.reply))
        down = session.down
        session.mobile_edge = attachment.down_from + offered
        self._owes_fin = down.fin != NO_FIN and down.acked > down.fin
        return offered

    def begin(
        self,
        server: socket.socket | None,
        on_early: Callable[[int, bytes], None],
        on_spliced: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Write the reply; the flows are installed.

        Args:
            server: The server leg's socket, at the first leg.
            on_early: Called before `on_spliced` where there are upstream bytes that nobody but this host has any more,
                with the offset of the first, and all of them.
            on_spliced: Called when the sockets have vanished, perhaps within this call.
            on_lost: Called where the leg came to nothing, not within this call; `server` is as it was.
        """
        self._server = server
        self._on_early = on_early
        self._on_spliced = on_spliced
        self._on_lost = on_lost
        self._deadline = time.monotonic() + _NEVER_S
        if server is not None:
            # Nobody knows yet what lies in the sockets. If the process dies, an ACK of the first byte tells: none.
            self._session.owed_up = self._session.owed_down = 1
        attachment = self._attachment
        assert attachment is not None
        mobile, reply = attachment.sock, attachment.reply
        if self._unheard:
            self._write(attachment)
            return
        state = ctypes.addressof(self._session.legs[self.number]) + _STATE_AT
        step = lib.msocks_join(mobile.fileno(), reply, len(reply), server.fileno() if server is not None else -1, state)
        if step == lib.JOIN_GONE:
            self._attachment = self._server = None
            for sock in (mobile, server) if server is not None else (mobile,):
                self._host.reactor.forget(sock.detach())
            self._joined(attachment, server is not None, attachment.early, reply, b"")
        elif step == lib.JOIN_LOST:
            self._lose()
        else:
            self._look()

    def begin_live(self, attachment: Attachment, *, window: int) -> None:
        """The leg carries already, and its numbers are known; its reply is crafted.

        Args:
            attachment: The leg.
            window: Bytes that the server may send behind what it knows to be acknowledged.
        """
        self._owes_fin = False
        early = attachment.early + _unread(attachment.sock, _MOST_COPIED_BYTES)
        self._let_go(attachment.sock)
        if early:  # behind a RECONNECT, so the mobile's still
            self._copy(early, attachment.up_from, window)
        else:
            self._host.output.send(say(self._session, SERVER, self._session.up.acked, window=window))
        self._watch_reply(attachment.down_from, attachment.reply, b"", is_said=False)

    def cancel(self) -> None:
        """Nobody waits for anything on this leg any more."""
        for residual in self._residuals:
            residual.cancel()
        self._residuals = ()
        self._owes_window = False
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            self._let_go(attachment.sock)

    def repeat(self) -> None:
        """The mobile has what came behind the reply, but not the reply."""
        for residual in self._residuals:
            residual.again()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _write(self, attachment: Attachment) -> None:
        """The reply, and no more: what is unheard is to be read before the socket vanishes."""
        try:
            attachment.sock.send(attachment.reply)
        except OSError:
            self._lose()
            return
        self._look()

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
            self._host.reactor.loop.call_later(_NOT_YET_S, self._look)

    def _lose(self) -> None:
        attachment, self._attachment = self._attachment, None
        assert attachment is not None
        self._let_go(attachment.sock)
        self._host.reactor.call_soon(self._on_lost)

    def _let_go(self, sock: socket.socket) -> None:
        self._host.reactor.forget(sock.fileno())
        vanish(sock)

    def _finish(self, attachment: Attachment) -> None:
        most = _MOST_COPIED_BYTES if self._is_capped(attachment) else None
        early = attachment.early + _unread(attachment.sock, most)
        said = _unheard(attachment.sock, attachment.reply) if self._unheard else attachment.reply
        self._let_go(attachment.sock)
        banner = b""
        server, self._server = self._server, None
        if server is not None:
            banner = _unread(server)
            self._let_go(server)
        self._joined(attachment, server is not None, early, said, banner)

    def _is_capped(self, attachment: Attachment) -> bool:
        """Whether bytes behind the request are the mobile's still; else this host's kernel has acknowledged them."""
        return self._resumable and attachment.generation > 1

    def _joined(self, attachment: Attachment, first: bool, early: bytes, said: bytes, banner: bytes) -> None:
        """The sockets have vanished; `early` and `banner` lay in them, and `said` ends with the reply."""
        session = self._session
        if first:
            session.owed_up, session.owed_down = len(early), len(banner)
        # The first word to the server says what the mobile's window is; see `parked` for why not always.
        offered = None if session.flags & SessionFlag.RESUMING else self._offered
        if early and self._is_capped(attachment):
            self._copy(early, attachment.up_from, offered)
        elif early:
            self._note(attachment.up_from, early)
            self._on_early(attachment.up_from, early)
        elif not first:
            self._host.output.send(say(session, SERVER, session.up.acked, window=offered))
        else:
            self._owes_window = True
            self._host.reactor.call_soon(self._tell_window)
        self._watch_reply(attachment.down_from, said, banner)
        on_spliced, self._on_spliced, self._on_lost, self._on_early = self._on_spliced, _nothing, _nothing, _forget
        on_spliced()

    def _tell_window(self) -> None:
        """Within the same moment: a client that speaks first, which has told its window by that, spares the packet."""
        session = self._session
        if self._owes_window and not session.up.packets:
            self._host.output.send(say(session, SERVER, session.up.acked, window=self._offered))

    def _watch_reply(self, first: int, said: bytes, banner: bytes, *, is_said: bool = True) -> None:
        """The reply was said; say it again until the mobile has acknowledged it, and what belongs to it.

        `said` ends with the reply, before the stream's byte `first`. `banner` are bytes of the server's that this
        host's kernel has acknowledged.
        """
        session, number = self._session, self.number
        entry = session.legs[number]
        offset = first - len(said)
        said += banner
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

        def again() -> None:
            self._host.output.send(say(session, number, offset, said, flags))

        if banner or flags & FIN or not is_said:
            again()
        self._owe(again, lambda: bool(entry.flags & LegFlag.REPLY_ACKED), entry)

    def _copy(self, early: bytes, offset: int, offered: int | None) -> None:
        """Bytes behind the request of a leg that was capped: the mobile's still, the server gets a copy."""
        session = self._session
        size = largest_payload(session.legs[SERVER], _SAFE_SEGMENT)
        end = offset + len(early)
        self._note(offset, early)
        limit = min(end, session.up.edge)
        begin = max(offset, session.up.acked)
        if begin >= limit:
            self._host.output.send(say(session, SERVER, session.up.acked, window=offered))
        while begin < limit:
            piece = early[begin - offset : min(limit, begin + size) - offset]
            self._host.output.send(say(session, SERVER, begin, piece, PSH, window=offered))
            begin += len(piece)

    def _note(self, offset: int, early: bytes) -> None:
        """They have come on this leg."""
        session, mobile = self._session, self._session.legs[self.number]
        end = offset + len(early)
        session.up.sent = max(session.up.sent, end)
        mobile.arrived = max(mobile.arrived, end)

    def _owe(self, say_again: Callable[[], None], is_acknowledged: Callable[[], bool], leg: Leg) -> None:
        timeout_s = 3 * leg.round_trip_ms / 1000
        residual = Residual(self._host.residuals, say_again, is_acknowledged, self._is_over, timeout_s=timeout_s)
        self._residuals += (residual,)

    def _is_over(self, residual: Residual) -> None:
        # A mobile that does not answer is found by those who watch over its links.
        self._residuals = tuple(each for each in self._residuals if each is not residual)


def _nothing() -> None:
    """In place of a callback that is not needed any more."""


def _forget(_begin: int, _early: bytes) -> None:
    """The same."""


def _unheard(sock: socket.socket, reply: bytes) -> bytes:
    """The reply, and what was said before it that the mobile has not acknowledged (a method selection)."""
    try:
        waiting = unheard(sock)
    except OSError:
        return reply
    return waiting if waiting.endswith(reply) else reply


def _unread(sock: socket.socket, most: int | None = None) -> bytes:
    """What the kernel has acknowledged and nobody has read; no more than `most` bytes of it."""
    pieces = []
    try:
        left = bytes_unread(sock)
        left = left if most is None else min(left, most)
        while left > 0:
            piece = sock.recv(left)
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
    except OSError:
        pass
    return b"".join(pieces)
